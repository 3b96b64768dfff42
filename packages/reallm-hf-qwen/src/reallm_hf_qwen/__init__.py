"""Qwen model families for reallm."""
