"""`ReaLModel`, the class that users work with: a network on the ranks of a layout, its checkpoints, and generation."""
