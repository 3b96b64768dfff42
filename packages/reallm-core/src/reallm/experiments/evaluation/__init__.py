"""Evaluation of checkpoints without training."""
