"""The demo, which trains a tiny model on a small dataset that is part of the core."""
