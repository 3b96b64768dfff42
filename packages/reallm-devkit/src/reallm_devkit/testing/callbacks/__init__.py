"""The conformance kit for callbacks of training runs."""
