"""Tasks of the library reasoning-gym as a dataset and a reward."""
