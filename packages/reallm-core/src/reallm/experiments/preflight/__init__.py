"""Checks before a run starts: configuration, device, memory, and that all ranks agree."""
