"""Formats in which people have their rows, and how each becomes the format that datasets read."""
