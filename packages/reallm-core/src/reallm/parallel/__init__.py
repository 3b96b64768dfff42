"""Many processes: layouts of ranks, which part of each parameter a rank holds, and what ranks tell each other."""
