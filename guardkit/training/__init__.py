"""Training a guard of one's own: labels, token labels, Stream heads, Gen by instruction tuning. Extra `train`."""
