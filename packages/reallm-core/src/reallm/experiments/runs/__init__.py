"""Run folders: what is in them, and reading and comparing them."""
