"""The algorithm `raft` for reallm."""
