"""Keys of `config.json` with the same meaning in every family: keys without effect, and with few allowed values.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Allowed:
    """The supported values of a key (besides null), and the remedy for any other."""

    values: tuple[Any, ...]
    remedy: str


IRRELEVANT = frozenset(
    {
        # origin of the file, and its classes
        "architectures", "auto_map", "model_type", "name_or_path", "tokenizer_class",
        "transformers_version", "transformers.js_config",
        # the type of the tensors is read from the tensors
        "dtype", "torch_dtype", "use_bfloat16",
        # token ids matter to tokenizers and generation, not to the network
        "bos_token_id", "decoder_start_token_id", "eod_token_id", "eos_token_id", "forced_bos_token_id",
        "forced_eos_token_id",
        "pad_token_id", "sep_token_id", "unk_token_id",
        # outputs of a forward call, and how transformers executes it
        "attn_implementation", "experts_implementation", "is_decoder", "keys_to_ignore_at_inference",
        "output_attentions", "output_hidden_states", "return_dict", "return_dict_in_generate",
        "tie_last_hidden_states", "torchscript", "use_cache", "use_return_dict",
        # classification heads; `config_from_hf` checks that a critic has one label
        "id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "classifier_dropout",
        "task_specific_params", "prefix",
        # defaults of generation, which belong in generation_config.json
        "bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
        "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "length_penalty", "max_length",
        "max_new_tokens", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
        "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty", "suppress_tokens",
        "temperature", "top_k", "top_p", "typical_p",
    }
)  # fmt: skip
"""Keys that do not change what the network computes."""


def is_irrelevant(key: str) -> bool:
    """Whether a key does not change what the network computes; a leading underscore marks a note of the writer."""
    return key in IRRELEVANT or key.startswith("_")


_DECODER_ONLY = "only decoder-only language models are supported"

RESTRICTED: Mapping[str, Allowed] = {
    "quantization_config": Allowed((), "quantized checkpoints are not supported: dequantize it, or take the original"),
    "compression_config": Allowed((), "compressed checkpoints are not supported: decompress it, or take the original"),
    "pretraining_tp": Allowed((1,), "set it to 1, which computes the same without splitting the matrices"),
    "is_encoder_decoder": Allowed((False,), _DECODER_ONLY),
    "add_cross_attention": Allowed((False,), _DECODER_ONLY),
    "tie_encoder_decoder": Allowed((False,), _DECODER_ONLY),
    "chunk_size_feed_forward": Allowed((0,), "set it to 0, which computes the same in one piece"),
    "pruned_heads": Allowed(({},), "checkpoints with pruned heads are not supported"),
    "partial_rotary_factor": Allowed((1,), "rotating a part of each head is not supported"),
    "rope_interleaved": Allowed((False,), "interleaved RoPE is not supported"),
}
"""Keys of which only some values are supported."""
