"""The conformance kit for reward functions."""
