"""The BLOOM model family for reallm."""
