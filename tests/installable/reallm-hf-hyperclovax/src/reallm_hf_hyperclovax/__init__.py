"""The HyperCLOVA X model family for reallm."""
