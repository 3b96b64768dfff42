"""Readers of rows: one module for each kind of source."""
