"""Optimizer steps on packed batches: micro-batches, forward and backward, the optimizer, memory."""
