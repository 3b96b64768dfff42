"""The conformance kit for datasets."""
