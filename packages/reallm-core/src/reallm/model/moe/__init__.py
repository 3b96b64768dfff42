"""Mixtures of experts: routing, and all experts as one grouped computation."""
