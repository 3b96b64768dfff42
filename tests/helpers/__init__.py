"""Shared by tests: `from tests.helpers.<module> import ...`, found because pytest runs as a module from the root."""
