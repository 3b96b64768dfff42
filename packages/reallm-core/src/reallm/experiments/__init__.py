"""Runs of an algorithm. Imports point down: run, then preflight, checkpointing and reports, then runs (run folders)."""
