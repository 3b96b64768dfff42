"""Metric loggers that come with the core."""
