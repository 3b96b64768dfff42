"""Finding what is installed: discovery over the entry-point group `reallm`, and look-ups by kind and name."""
