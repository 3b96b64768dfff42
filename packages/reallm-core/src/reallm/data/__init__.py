"""Rows, datasets, named arrays and packing: the path from a file to a packed batch."""
