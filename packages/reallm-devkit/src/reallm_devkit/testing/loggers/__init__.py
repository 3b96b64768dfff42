"""The conformance kit for metric loggers."""
