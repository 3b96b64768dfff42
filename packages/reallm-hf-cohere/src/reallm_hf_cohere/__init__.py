"""Cohere model families for reallm."""
