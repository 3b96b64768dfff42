"""HuggingFace model families: `tables` for authors to write, and `conversion`, in which the core applies them."""
