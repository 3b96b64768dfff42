"""Distillation: a student learns the distributions of a teacher of the same vocabulary."""
