"""The demo: trains a tiny model on a small dataset that comes with the core."""
