"""OLMo model families for reallm."""
