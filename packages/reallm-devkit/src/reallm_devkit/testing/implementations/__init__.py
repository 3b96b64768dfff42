"""The conformance kit for implementations of networks."""
