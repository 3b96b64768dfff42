"""A dataset for reallm: the lines of a text file."""
