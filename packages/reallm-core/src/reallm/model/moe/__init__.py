"""Mixture of experts: router, and all experts as one grouped computation."""
