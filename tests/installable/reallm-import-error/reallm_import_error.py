"""Fails when it is imported."""

raise RuntimeError("the plugin's own\nmistake")
