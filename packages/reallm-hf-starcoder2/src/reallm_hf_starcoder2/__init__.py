"""StarCoder2 model family for reallm."""
