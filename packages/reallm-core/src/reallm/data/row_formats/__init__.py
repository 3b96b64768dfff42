"""Forms in which people have their rows, and how each becomes the form that datasets read."""
