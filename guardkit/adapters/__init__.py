"""Adapters for people who generate locally. Import the one you need: `guardkit.adapters.transformers`."""
