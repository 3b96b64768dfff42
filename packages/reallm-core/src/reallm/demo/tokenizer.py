"""The demo's tokenizer: one token for each byte, so that a model can learn to spell."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END = "<|end|>"


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of 257 tokens: the end of a sequence, and the 256 bytes of UTF-8 text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # trained without data: only the alphabet, no merges
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 1, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([], trainer=trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
