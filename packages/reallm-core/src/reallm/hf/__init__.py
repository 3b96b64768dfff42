"""HuggingFace model families: `tables` are what their authors write, `conversion` is what the core does with them."""
