"""What the core does with the tables of a family: configurations, weights, and which family reads a checkpoint."""
