"""Reward functions: finding them, and calling them in a pool of processes. Imports no torch."""
