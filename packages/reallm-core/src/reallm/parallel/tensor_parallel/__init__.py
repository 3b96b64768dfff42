"""Tensor parallelism, applied to a network from outside."""
