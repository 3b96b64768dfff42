"""Gemma model families for reallm."""
