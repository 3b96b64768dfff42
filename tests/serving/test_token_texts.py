"""Single tokens as text and as bytes."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from reallm.serving.token_texts import TokenTexts
from tests.helpers.tokenizers import tiny_tokenizer


@pytest.mark.parametrize("text", ["The quick brown fox", "naïve €5 \u2581", "日本", "<|im_end|>"])
def test_the_bytes_of_tokens_are_the_bytes_of_the_text(text: str) -> None:
    tokenizer = tiny_tokenizer()
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(text)
    assert b"".join(bytes(texts.utf8(number) or []) for number in ids) == text.encode()
    assert sum(map(texts.n_characters, ids)) == len(text)


def test_a_part_of_a_character_is_named_by_its_bytes() -> None:
    tokenizer = tiny_tokenizer()
    texts = TokenTexts(tokenizer)
    assert [texts.text(number) for number in tokenizer.encode("€")] == ["bytes:\\xe2", "bytes:\\x82", "bytes:\\xac"]
    assert texts.text(tokenizer.encode(" fox")[0]) == " fox"


def test_all_tokens_have_different_texts() -> None:
    tokenizer = tiny_tokenizer()
    texts = TokenTexts(tokenizer)
    assert len({texts.text(number) for number in range(len(tokenizer))}) == len(tokenizer)


def test_vocabularies_with_marked_words_and_tokens_of_bytes() -> None:
    vocabulary = {"<unk>": 0, "\u2581the": 1, "fox": 2, "<0xE2>": 3}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    texts = TokenTexts(PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>"))
    assert [texts.text(number) for number in range(4)] == ["<unk>", " the", "fox", "bytes:\\xe2"]
    assert texts.utf8(3) == [0xE2]


def test_an_id_that_the_tokenizer_does_not_have() -> None:
    texts = TokenTexts(tiny_tokenizer())
    assert texts.text(10_000) == "token_id:10000"
    assert texts.utf8(10_000) is None
