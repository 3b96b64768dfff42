"""`ReaLModel`, the class users hold, and the training engine around it."""
