"""Rows, datasets, named arrays, packing: everything between a file and a packed batch."""
