"""The embedded demonstration: a tiny model trained on a small data set that ships with the core."""
