"""Offloading: parameters and optimizer state in host memory while they are not needed."""
