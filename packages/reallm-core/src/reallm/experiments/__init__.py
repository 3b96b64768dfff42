"""Experiments: configuration, the runner, run folders, progress."""
