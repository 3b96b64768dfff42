"""Names of the files in the folder of a checkpoint or an adapter."""

CONFIG_NAME = "config.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*.jinja",
    "chat_templates/*.jinja",
)
GENERATION_CONFIG_NAME = "generation_config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"
SMALL_FILES = (CONFIG_NAME, ADAPTER_CONFIG_NAME, GENERATION_CONFIG_NAME, *TOKENIZER_FILES)
"""Patterns of all files but those of weights."""
