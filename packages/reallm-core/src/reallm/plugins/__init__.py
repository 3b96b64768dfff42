"""Plugins: discovery through the entry-point group `reallm`, and look-ups by kind and name."""
