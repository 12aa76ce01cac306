"""The protocols that the proxy speaks, one module each."""
