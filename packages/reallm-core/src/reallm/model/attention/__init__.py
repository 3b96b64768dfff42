"""Attention over packed sequences, grouped-query attention, and the KV cache."""
