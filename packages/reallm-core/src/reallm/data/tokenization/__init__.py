"""Rows to tokens: streamed from their source, encoded in batches, and stored in flat arrays."""
