"""Measurements of models and links on the machine at hand, for plans: a profile, and rates that are read from it."""
