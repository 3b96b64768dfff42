"""Configurations: their dataclasses, reading them from files and `key=value`, and what is said of mistakes."""
