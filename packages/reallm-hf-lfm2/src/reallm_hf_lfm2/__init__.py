"""LFM2 model families for reallm."""
