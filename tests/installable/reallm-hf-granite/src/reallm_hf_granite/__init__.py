"""The Granite model family for reallm."""
