"""The logger `csv` for reallm."""
