"""The Apertus model family for reallm."""
