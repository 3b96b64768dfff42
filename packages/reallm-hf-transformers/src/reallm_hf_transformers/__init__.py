"""Causal language models in transformers' own layers, for architectures that no family describes."""
