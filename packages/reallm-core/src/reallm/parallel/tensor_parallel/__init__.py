"""Tensor parallelism, applied to a network from outside: model code has no collectives."""
