"""The special tokens of a tokenizer."""

from __future__ import annotations

from reallm.data.special_tokens import special_ids
from tests.helpers.tokenizers import tiny_tokenizer


def test_special_tokens_are_those_without_text():
    tokenizer = tiny_tokenizer()
    names = {tokenizer.convert_ids_to_tokens(one) for one in special_ids(tokenizer)}
    assert names == {"<unk>", "<s>", "<|im_start|>", "<|im_end|>", "<pad>"}
