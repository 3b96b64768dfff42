"""HuggingFace checkpoints on disk: reading and writing safetensors, by one process or by many."""
