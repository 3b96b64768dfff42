"""Granite model families for reallm."""
