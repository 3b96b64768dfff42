"""Tensor parallelism, applied to a network after it is built: model code contains no collectives."""
