"""HuggingFace model families: their tables, and safetensors checkpoints."""
