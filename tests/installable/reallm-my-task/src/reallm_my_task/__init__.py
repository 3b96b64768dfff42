"""A task for reallm: sums, and what rewards their answers."""
