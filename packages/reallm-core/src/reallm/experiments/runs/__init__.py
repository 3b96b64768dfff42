"""Run folders: their contents, and reading and comparing them."""
