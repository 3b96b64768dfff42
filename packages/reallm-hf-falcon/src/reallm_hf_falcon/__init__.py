"""Falcon model families for reallm."""
