"""Phi model families for reallm."""
