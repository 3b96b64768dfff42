"""Conversion of configurations and weights by a family's tables, and finding the family of a checkpoint."""
