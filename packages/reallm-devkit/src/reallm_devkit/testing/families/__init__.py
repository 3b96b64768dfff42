"""The conformance kit for model families: whether tables and classes give what transformers gives."""
