"""Mistral model families for reallm."""
