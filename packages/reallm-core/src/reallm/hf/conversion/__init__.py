"""Configurations and weights converted by the tables of a family, and the family that reads a checkpoint."""
