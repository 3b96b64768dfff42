"""The tokens at the ends of a text that is far longer than what is kept of it, without tokenizing all of it.

A row of a hundred megabytes takes minutes and gigabytes to tokenize, and is then cut to `max_seqlen` tokens or dropped.
The tokens of a prefix are not simply a prefix of the tokens: the last ones may be others when the text goes on. Two
arguments tell that the first `n` are the same:

- *Words.* A tokenizer splits a text into words first (its pre-tokenizer), and the tokens of a word depend on the word
  alone. Where a text is split depends on the run of letters, digits, signs or whitespace at this place, so that the end
  of a prefix decides about its last few words only. The first `n` tokens are taken if `_WORDS` words follow them.
- *Merges.* Byte-pair encoding of a single long word, or of a text that is not split at all. A sequence of tokens is the
  encoding of its text if each pair of neighbours is the encoding of the text of the pair: the first merge across a
  boundary between two tokens would happen in the text of these two as well. No token is longer than the longest one of
  the vocabulary, so one ends in any window of that length. If what follows the first `n - 1` tokens begins with the
  same token wherever in a window it ends, the first `n` are those of the whole.

The first one holds for patterns that look no further than over the next words, as those of all known language models;
the second one is exact. Where neither applies, as for a word without end whose characters a normalizer may reorder, the
tokens are those of the longest part that was tried, by definition. The last tokens of a text are those of a suffix that
starts between two words, where every pattern splits a text.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from transformers import AddedToken, PreTrainedTokenizerBase

MIN_CHARACTERS = 1 << 16
"""Shorter texts are tokenized as a whole, which takes less than a tenth of a second."""
_WORDS = 64
"""Words that must follow the first tokens that are taken; tokens that must be before the last ones."""
_MARGIN = 256
"""Characters that must follow them, in addition to those of the longest token that was added to the tokenizer."""
_FIRST_GUESS = 8
"""Characters for each token; the part that is tokenized grows until it has enough tokens."""
_TRIES = 3
"""Parts, each twice as long as the one before, for which the arguments are tried."""
_MOST = 1 << 10
"""Characters for each token, beyond which a text is tokenized in pieces. Only tokenizers whose normalizer leaves
characters out, or which have one unknown token for a word of any length, get that far."""
_LONGEST_TOKEN = 1 << 10
"""Characters of the longest token with which the second argument is tried."""

_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")
_BYTES = {chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 324))}
"""The characters that byte-level vocabularies have for the 256 bytes."""
_ONE_BY_ONE = {"Prepend", "Replace"}
"""Normalizers that do not look at the neighbours of a character."""


class TokensWithEnds(NamedTuple):
    """Tokens of a text, and the offset in it where the characters of each end: int64 [L], never decreasing."""

    ids: list[int]
    ends: np.ndarray


class _Part(NamedTuple):
    """Tokens of a part of a text, with the number of the word that each is in, and how the vocabulary writes it."""

    ids: list[int]
    ends: np.ndarray
    words: list[int]
    names: list[str]


class LongTexts:
    """Tokenizes the ends of long texts; what it needs to know of the tokenizer is found out once.

    Tokens are without special ones at the ends. Time and memory are in proportion to the number of tokens, not to the
    text. Tokenizers that are not fast ones give no offsets: all ends are 0.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def first(self, text: str, n: int) -> TokensWithEnds | None:
        """The first `n` tokens of a text, or all if it has fewer; None if it is short enough to be taken as a whole."""
        size, tries = self._size(n), 0
        while len(text) >= MIN_CHARACTERS and 2 * size < len(text):
            if size > self._most(n):
                return self._in_pieces(text, n, size)
            part = self._tokens(text[:size])
            if len(part.ids) > n and part.ends[n - 1] + self._margin <= size:
                tries += 1
                follow_words = part.words[-1] - part.words[n - 1] > _WORDS
                if follow_words or self._is_decided(text[:size], part, n) or tries == _TRIES:
                    return TokensWithEnds(part.ids[:n], part.ends[:n])
            size *= 2
        return None

    def last(self, text: str, n: int) -> list[int] | None:
        """The last `n` tokens of a text, or fewer if its end has no more; None if it can be taken as a whole."""
        size = self._size(n)
        while len(text) >= MIN_CHARACTERS and 2 * size < len(text):
            start = len(text) - size
            between = _BETWEEN_WORDS.search(text, start - self._margin, start)
            part = self._tokens(text[between.start() if between else start :])
            if len(part.ids) >= n + _WORDS or size > self._most(n):
                return part.ids[-n:]
            size *= 2
        return None

    def first_token(self, text: str) -> list[int]:
        """The first token of a text that has one."""
        return self._tokens(text[: self._margin]).ids[:1]

    def _size(self, n: int) -> int:
        return _FIRST_GUESS * n + 2 * self._margin

    def _most(self, n: int) -> int:
        return _MOST * n + 2 * self._margin

    def _in_pieces(self, text: str, n: int, size: int) -> TokensWithEnds:
        ids: list[int] = []
        ends: list[np.ndarray] = []
        for start in range(0, len(text), size):
            part = self._tokens(text[start : start + size])
            ids += part.ids
            ends.append(part.ends + start)
            if len(ids) >= n:
                break
        return TokensWithEnds(ids[:n], np.concatenate(ends)[:n])

    def _is_decided(self, prefix: str, part: _Part, n: int) -> bool:
        """Whether the last word of a prefix, which may be longer in the whole text, begins with the same tokens there.

        These are as many of it as there are among the first `n` of the prefix, and at least one.
        """
        longest = self._longest_token
        if longest is None:
            return False
        # patterns split whitespace of several kinds at its last newline, which may be far away
        if len(set(prefix[len(prefix.rstrip()) :])) > 1:
            return False
        known = max(n - 1, part.words.index(part.words[-1]))
        start = part.ends[known - 1] if known else 0
        rest = "".join(part.names[known:])
        is_long = len(rest) >= 3 * longest + 4 * self._margin  # in UTF-8, for tokenizers of bytes
        is_spelled = not any(name.startswith("<0x") for name in part.names[known:])
        if not (is_long and is_spelled and (self._is_one_by_one or prefix[start:].isascii())):
            return False
        model = self._tokenizer.backend_tokenizer.model
        stops = range(2 * longest, 3 * longest)
        return all(model.tokenize(rest[:stop])[0].id == part.ids[known] for stop in stops)

    def _tokens(self, text: str) -> _Part:
        is_fast = self._tokenizer.is_fast
        encoded = self._tokenizer(
            [text],
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            return_offsets_mapping=is_fast,
            verbose=False,
        )
        ids = encoded["input_ids"][0]
        if not is_fast:
            return _Part(ids, np.zeros(len(ids), np.int64), [0] * len(ids), [""] * len(ids))
        ends = np.array(encoded["offset_mapping"][0], np.int64).reshape(-1, 2)[:, 1]
        return _Part(ids, ends, [-1 if word is None else word for word in encoded.word_ids(0)], encoded.tokens(0))

    @cached_property
    def _description(self) -> dict[str, Any]:
        """The parts of a fast tokenizer, as `tokenizer.json` has them, without the vocabulary."""
        parts = json.loads(self._tokenizer.backend_tokenizer.to_str())
        return {name: parts[name] for name in ("normalizer", "pre_tokenizer")} | {
            "model": {key: value for key, value in parts["model"].items() if key not in ("vocab", "merges")}
        }

    @cached_property
    def _added(self) -> list[AddedToken]:
        return [*self._tokenizer.added_tokens_decoder.values()]

    @cached_property
    def _margin(self) -> int:
        return _MARGIN + max((len(str(token)) for token in self._added), default=0)

    @cached_property
    def _is_one_by_one(self) -> bool:
        """Whether the tokenizer's normalizer, if it has one, takes each character by itself."""
        found = self._description["normalizer"]
        parts = found["normalizers"] if found is not None and found["type"] == "Sequence" else [found]
        return all(part is None or part["type"] in _ONE_BY_ONE for part in parts)

    @cached_property
    def _longest_token(self) -> int | None:
        """Characters of the longest name in the vocabulary; None if the second argument does not hold."""
        # a token that takes the space before it, however much that is, decides where the last word ends
        if not self._tokenizer.is_fast or any(token.lstrip for token in self._added):
            return None
        model, vocabulary = self._description["model"], self._tokenizer.get_vocab()
        if model["type"] != "BPE" or any(
            model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
        ):
            return None
        is_of_bytes = '"ByteLevel"' in json.dumps(self._description["pre_tokenizer"])
        if not (vocabulary.keys() >= _BYTES if is_of_bytes else model.get("byte_fallback") and "<0x41>" in vocabulary):
            return None  # one unknown token may stand for any number of characters
        longest = max(map(len, vocabulary))
        return longest if longest <= _LONGEST_TOKEN else None
