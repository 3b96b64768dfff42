"""StableLM model family for reallm."""
