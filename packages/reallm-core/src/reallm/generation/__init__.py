"""Generation with a KV cache, sampling, and log-probabilities of given tokens; on one process or a whole layout."""
