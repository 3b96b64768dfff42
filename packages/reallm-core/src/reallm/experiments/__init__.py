"""Runs of an algorithm. Imports go down only: run, then preflight, checkpointing, reports, then runs (run folders)."""
