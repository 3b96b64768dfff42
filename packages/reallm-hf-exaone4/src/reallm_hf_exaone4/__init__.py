"""EXAONE 4 model family for reallm."""
