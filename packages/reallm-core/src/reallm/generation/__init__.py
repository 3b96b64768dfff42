"""Sampling and the decoding loop over a KV cache."""
