"""Configurations: dataclasses, loading from files and `key=value`, and error messages for mistakes."""
