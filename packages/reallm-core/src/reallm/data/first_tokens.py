"""The first tokens of a text that is far longer than what is kept of it, without tokenizing all of it.

A row of a hundred megabytes takes minutes and gigabytes to tokenize, and is then cut to `max_seqlen` tokens or dropped.
The tokens of a prefix are not simply a prefix of the tokens: the last ones may be others when the text goes on. Two
arguments tell that the first `n` are the same:

- *Words.* A tokenizer splits a text into words first (its pre-tokenizer), and the tokens of a word depend on the word
  alone. Where a text is split depends on the run of letters, digits, signs or whitespace at this place, so that the end
  of a prefix decides about its last few words only. The first `n` tokens are taken if `_WORDS` words follow them.
- *Merges.* Byte-pair encoding of a single long word, or of a text that is not split at all: a prefix of its tokens is
  the encoding of the text of these (no merge has crossed the place where they end, so the merges on either side are
  those of this side alone). No token is longer than the longest one of the vocabulary, so one ends in any window of
  that length. If the prefixes that end at each place of a window begin with the same `n` tokens, so does the whole.

The first one holds for patterns that look no further than over the next words, as those of all known language models;
the second one is exact, and is used for windows of ASCII characters, in which each token ends between two characters.
Where neither applies the whole text is tokenized.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from transformers import AddedToken, PreTrainedTokenizerBase

MIN_CHARACTERS = 1 << 16
"""Shorter texts are tokenized as a whole, which takes less than a tenth of a second."""
_WORDS = 64
"""Words that must follow the tokens that are taken."""
_MARGIN = 256
"""Characters that must follow them, in addition to those of the longest token that was added to the tokenizer."""
_CHARACTERS_PER_TOKEN = 8
"""First guess; the prefix grows until it has enough tokens."""

_BYTES = {chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 324))}
"""The characters that byte-level vocabularies have for the 256 bytes."""
_KEEPING_LENGTHS = {"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Prepend"}
"""Normalizers that make one character of each one in ASCII, beside what they put before the text."""
_KEEPING_TEXT = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts"}
"""Pre-tokenizers that leave out no characters, unless their `behavior` is to remove them."""


class TokensWithEnds(NamedTuple):
    """Tokens of a text, and for each the offset where its characters end: int64 [L], never decreasing."""

    ids: list[int]
    ends: np.ndarray


class FirstTokens:
    """Tokenizes the beginnings of long texts; what it needs to know of the tokenizer is found out once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: str, n: int) -> TokensWithEnds | None:
        """The first `n` tokens of a text that has more; None if it may not have, or if they cannot be told so.

        Without special tokens at the ends. Takes time and memory in proportion to `n`, not to the text.
        """
        if not self._tokenizer.is_fast or len(text) < MIN_CHARACTERS:
            return None
        size = _CHARACTERS_PER_TOKEN * n + 2 * self._margin
        while 2 * size < len(text):
            ids, ends, words = _tokens(self._tokenizer, text[:size])
            if len(ids) > n and ends[n - 1] + self._margin <= size:
                first = TokensWithEnds(ids[:n], ends[:n])
                if words[-1] - words[n - 1] > _WORDS or self._is_start_of_merges(text, size, first):
                    return first
            size *= 2
        return None

    def _is_start_of_merges(self, text: str, size: int, first: TokensWithEnds) -> bool:
        """Whether all prefixes that end in a window before `size` begin with these tokens, and so does the text."""
        longest = self._longest_token
        if longest is None or size * longest > len(text):  # the whole is tokenized sooner
            return False
        following, window = text[first.ends[-1] : size], text[size - longest : size]
        # patterns split whitespace of several kinds at its last newline, which may be far away
        is_mixed_space = following.isspace() and len(set(following)) > 1
        if len(following) < 2 * longest or not window.isascii() or is_mixed_space:
            return False
        n = len(first.ids)
        return all(_tokens(self._tokenizer, text[: size - i])[0][:n] == first.ids for i in range(1, longest + 1))

    @cached_property
    def _added(self) -> list[AddedToken]:
        return [*self._tokenizer.added_tokens_decoder.values()]

    @cached_property
    def _margin(self) -> int:
        return _MARGIN + max((len(str(token)) for token in self._added), default=0)

    @cached_property
    def _longest_token(self) -> int | None:
        """The most characters in ASCII that one token has; None if the second argument does not hold."""
        return None if any(token.lstrip for token in self._added) else _longest_token(self._tokenizer)


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], np.ndarray, list[int]]:
    """The tokens of a text, the offsets where they end, and the number of the word that each is in."""
    encoded = tokenizer(
        [text],
        add_special_tokens=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    ends = np.array(encoded["offset_mapping"][0], np.int64).reshape(-1, 2)[:, 1]
    return encoded["input_ids"][0], ends, [-1 if word is None else word for word in encoded.word_ids(0)]


def _longest_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The most characters in ASCII that one token has; None if that is not known of this kind of tokenizer."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    model = parts["model"]
    vocabulary = model["vocab"]
    if model["type"] != "BPE" or any(
        model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    ):
        return None
    normalizers, splitters = _flat(parts["normalizer"], "normalizers"), _flat(parts["pre_tokenizer"], "pretokenizers")
    if not all(map(_keeps_lengths, normalizers)):
        return None
    if any(one["type"] not in _KEEPING_TEXT or one.get("behavior") == "Removed" for one in splitters):
        return None
    in_bytes = any(one["type"] == "ByteLevel" for one in splitters)
    if not (vocabulary.keys() >= _BYTES if in_bytes else model.get("byte_fallback") and "<0x41>" in vocabulary):
        return None  # one unknown token may stand for any number of characters
    return max(len(token) for token in (*vocabulary, *(one["content"] for one in parts["added_tokens"])))


def _flat(part: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """The normalizers or pre-tokenizers in a part of `tokenizer.json`."""
    if part is None:
        return []
    return [inner for one in part[key] for inner in _flat(one, key)] if part["type"] == "Sequence" else [part]


def _keeps_lengths(normalizer: Mapping[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        return len(normalizer["pattern"].get("String", "")) == len(normalizer["content"]) == 1
    return normalizer["type"] in _KEEPING_LENGTHS
