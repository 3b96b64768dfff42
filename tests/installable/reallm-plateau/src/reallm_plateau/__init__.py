"""The callback `plateau` for reallm."""
