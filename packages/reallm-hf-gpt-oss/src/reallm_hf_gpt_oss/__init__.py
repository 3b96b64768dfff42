"""The gpt-oss model family for reallm."""
