"""The text that each token adds: together the whole text, whatever the tokenizer splits."""

from __future__ import annotations

import pytest

from reallm.data.preview.token_text import INCOMPLETE, token_texts
from tests.helpers.tokenizers import tiny_tokenizer


@pytest.mark.parametrize(
    "text",
    ["The quick brown fox", "naïve café, 日本語 🙂🙂", "a\n\n\tb  c", "<|im_start|>user\nhi<|im_end|>\n", "🧑‍🚀 x"],
)
def test_the_texts_of_all_tokens_are_the_text(text):
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text)
    texts = token_texts(tokenizer, ids)
    assert len(texts) == len(ids)
    assert "".join(texts) == text


def test_the_last_token_of_a_character_has_it():
    tokenizer = tiny_tokenizer()
    assert token_texts(tokenizer, tokenizer.encode("é🙂a")) == ["", "é", "", "", "", "🙂", "a"]


def test_a_character_that_was_cut_off_is_shown_as_such():
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode("a🙂")
    assert token_texts(tokenizer, ids[:-1]) == ["a", "", "", INCOMPLETE]
    assert token_texts(tokenizer, ids[2:]) == ["", "", INCOMPLETE * 3]


def test_spaces_between_words_stay():
    tokenizer = tiny_tokenizer(kind="words")
    ids = tokenizer.encode("The capital of France")
    texts = token_texts(tokenizer, ids)
    assert "".join(texts) == "The capital of France"
    assert token_texts(tokenizer, []) == []
