"""The conformance kit for algorithms."""
