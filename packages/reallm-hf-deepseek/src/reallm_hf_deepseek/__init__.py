"""DeepSeek model families for reallm."""
