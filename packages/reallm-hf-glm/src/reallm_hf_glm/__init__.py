"""GLM model families for reallm."""
