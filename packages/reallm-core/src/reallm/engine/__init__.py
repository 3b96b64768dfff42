"""`ReaLModel`, the class users hold: a network on the ranks of a layout, its checkpoints, and generation."""
