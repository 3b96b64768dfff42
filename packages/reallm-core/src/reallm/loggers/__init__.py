"""Metric loggers of the core."""
