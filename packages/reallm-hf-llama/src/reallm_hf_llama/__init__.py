"""Llama-architecture model families for reallm."""
