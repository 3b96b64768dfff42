"""GPT-2 model families for reallm."""
