"""Tokenizes prompts with answers and conversations, with a mask of the tokens that the model is to write.

In generation, a model gets the tokens of the prompt alone. A tokenizer that sees prompt and answer as one text may
merge the end of the one with the beginning of the other, and training would use a prompt that generation never has.
So the whole text is tokenized, which gives the answer the tokens that it has in running text, and the result is used
if the tokens of the prompt alone are a prefix of it; if not, prompt and answer are tokenized separately. The same
holds for each turn of a conversation, with everything before it as its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reallm.data.chat.template import ChatTemplate, Conversation
from reallm.data.long_texts import LongTexts, TokensWithEnds
from reallm.errors import ConfigError, DataError, kind_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANCHOR = "\n"
_LONGEST_HEADER = 256
"""Characters of the longest header of a turn that is remembered; without special tokens it is all text before."""


class PromptAnswer(NamedTuple):
    """A prompt and its answer."""

    prompt: str
    answer: str


class Encoded(NamedTuple):
    """Tokens of a sequence: `ids` int32 [L], and `answer_mask` bool [L], True for those that the model is to write."""

    ids: np.ndarray
    answer_mask: np.ndarray

    @property
    def prompt_len(self) -> int:
        """Number of tokens before those that the model is to write; at least 1, because nothing predicts the first."""
        return 1 + int(self.answer_mask[1:].argmax())


class Encoder:
    """A tokenizer, with the rules for special tokens at both ends.

    The beginning-of-sequence token is put before a prompt once, if the tokenizer adds one; the end-of-sequence token is
    put after an answer once, and is part of it. Special tokens that are spelled out in the text are encoded as special
    tokens. The output of a chat template gets no further tokens.

    With `at_most`, texts that are far longer are tokenized in part: what is returned for them is longer than `at_most`,
    and its first `at_most` tokens and their masks are those of the whole. Turns that begin after these have no say in
    how a conversation is tokenized.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not callable(tokenizer):
            raise ConfigError(f"tokenizer must be a tokenizer, not {kind_of(tokenizer)}")
        self._tokenizer = tokenizer
        with_special = self._tokenize(["a"], add_special_tokens=True)["input_ids"][0]
        adds_bos = tokenizer.bos_token_id is not None and with_special[:1] == [tokenizer.bos_token_id]
        self._bos: list[int] = [tokenizer.bos_token_id] if adds_bos else []
        self._headers: dict[str, list[int]] = {}

    @property
    def has_chat(self) -> bool:
        """Whether the tokenizer has a chat template."""
        return bool(self._tokenizer.chat_template)

    @cached_property
    def chat(self) -> ChatTemplate:
        """The tokenizer's chat template. Raises DataError if it has none."""
        return ChatTemplate(self._tokenizer)

    @property
    def padding(self) -> int:
        """The id of the padding token, or else of the end-of-sequence token."""
        pad = self._tokenizer.pad_token_id
        return self._eos if pad is None else int(pad)

    def prompts(
        self, texts: Sequence[str], rendered: Sequence[bool], *, at_most: int | None = None, of_end: bool = False
    ) -> list[np.ndarray]:
        """Tokens int32 [L] of each prompt; `rendered` says which are output of the chat template.

        With `of_end`, those of a prompt that is far longer than `at_most` are its first one and the last `at_most`.
        """
        return [
            np.array(ids if by_template else self._with_bos(ids), np.int32)
            for ids, by_template in zip(self._ids(texts, at_most, of_end=of_end), rendered, strict=True)
        ]

    def sequences(self, texts: Sequence[PromptAnswer | Conversation], *, at_most: int | None = None) -> list[Encoded]:
        """Tokens of each text, in order, with their answer masks."""
        pairs = iter(self._encode_pairs([text for text in texts if isinstance(text, PromptAnswer)], at_most))
        chats = iter(self._encode_chats([text for text in texts if isinstance(text, Conversation)], at_most))
        return [next(pairs if isinstance(text, PromptAnswer) else chats) for text in texts]

    def _encode_pairs(self, pairs: Sequence[PromptAnswer], at_most: int | None) -> list[Encoded]:
        prompts = self._ids([pair.prompt for pair in pairs], at_most)
        wholes = self._ids([pair.prompt + pair.answer for pair in pairs], at_most)
        return [self._encode_pair(*one, at_most) for one in zip(prompts, wholes, pairs, strict=True)]

    def _encode_pair(self, prompt: list[int], whole: list[int], pair: PromptAnswer, at_most: int | None) -> Encoded:
        # Of a prompt or a whole that is cut there are more than `at_most` tokens, so what follows them does not matter.
        is_prefix = whole[: len(prompt)] == prompt
        answer = whole[len(prompt) :] if is_prefix else self._encode_continuation(pair.answer, at_most)
        if answer[-1:] != [self._eos]:
            answer = [*answer, self._eos]
        prompt = self._with_bos(prompt) if prompt or answer[: len(self._bos)] != self._bos else prompt
        answer_mask = np.arange(len(prompt) + len(answer)) >= len(prompt)
        return Encoded(np.array(prompt + answer, np.int32), answer_mask)

    def _encode_chats(self, chats: Sequence[Conversation], at_most: int | None) -> list[Encoded]:
        if chats and not self._tokenizer.is_fast:
            raise DataError(
                f"{type(self._tokenizer).__name__} cannot tell where in the text a token comes from, which rows with "
                "'messages' need; use the tokenizer in its fast form (tokenizer.json)"
            )
        firsts = [None if at_most is None else self._long_texts.first(chat.text, at_most + 1) for chat in chats]
        rest = [chat.text for chat, first in zip(chats, firsts, strict=True) if first is None]
        wholes = iter(self._tokens_with_ends(rest))
        return [
            self._encode_chat(chat, next(wholes) if first is None else first, at_most)
            for chat, first in zip(chats, firsts, strict=True)
        ]

    def _encode_chat(self, chat: Conversation, whole: TokensWithEnds, at_most: int | None) -> Encoded:
        turns = chat.turns
        if at_most is not None and len(whole.ids) > at_most:
            turns = tuple(turn for turn in turns if turn[0] < whole.ends[at_most - 1])
        answer_mask = np.zeros(len(whole.ids), np.bool_)
        for start, end in turns:
            n_before = self._prompt_length(chat.text, start, whole)
            if n_before is None:
                return self._encode_chat_in_pieces(chat, at_most)
            answer_mask[n_before:] |= whole.ends[n_before:] <= end
        if len(turns) < len(chat.turns):
            answer_mask[-1] = True  # stands for what the model is to write after the tokens that are kept
        return Encoded(np.array(whole.ids, np.int32), answer_mask)

    def _prompt_length(self, text: str, start: int, whole: TokensWithEnds) -> int | None:
        """Number of tokens of `text[:start]`, or None if these are not a prefix of the tokens of the whole text."""
        # Tokenizers first split a text at added tokens, so only the text after the last one needs to be tokenized: the
        # header of the turn, which is always the same.
        n = int(np.searchsorted(whole.ends, start, side="right"))
        while n and whole.ids[n - 1] not in self._added:
            n -= 1
        header = text[whole.ends[n - 1] if n else 0 : start]
        ids = self._headers.get(header)
        if ids is None:
            ids = self._ids([header])[0]
            if len(header) <= _LONGEST_HEADER:
                self._headers[header] = ids
        if whole.ids[n : n + len(ids)] == ids:
            return n + len(ids)
        prompt = self._ids([text[:start]])[0]
        return len(prompt) if whole.ids[: len(prompt)] == prompt else None

    def _encode_chat_in_pieces(self, chat: Conversation, at_most: int | None) -> Encoded:
        """The conversation split where turns start, each piece tokenized separately."""
        starts = [start for start, _ in chat.turns]
        ids = self._ids([chat.text[: starts[0]]], at_most)[0]
        answer_mask = [False] * len(ids)
        for (start, end), stop in zip(chat.turns, [*starts[1:], len(chat.text)], strict=True):
            if at_most is not None and len(ids) > at_most:
                answer_mask[-1] = True  # as above
                break
            turn, rest = (
                self._encode_continuation(chat.text[start:end], at_most),
                self._ids([chat.text[end:stop]], at_most)[0],
            )
            ids = [*ids, *turn, *rest]
            answer_mask += [True] * len(turn) + [False] * len(rest)
        return Encoded(np.array(ids, np.int32), np.array(answer_mask, np.bool_))

    def _encode_continuation(self, text: str, at_most: int | None = None) -> list[int]:
        """Tokens of a text that follows another, without the space that some tokenizers put before the first word."""
        anchor = self._anchor
        whole = self._ids([_ANCHOR + text], None if at_most is None else at_most + len(anchor))[0]
        return whole[len(anchor) :] if whole[: len(anchor)] == anchor else self._ids([text], at_most)[0]

    @cached_property
    def _long_texts(self) -> LongTexts:  # made late: a fingerprint of the encoder describes the tokenizer once
        return LongTexts(self._tokenizer)

    @cached_property
    def _anchor(self) -> list[int]:
        return self._ids([_ANCHOR])[0]

    @cached_property
    def _eos(self) -> int:
        eos = self._tokenizer.eos_token_id
        if eos is None:
            raise DataError("the tokenizer has no end-of-sequence token, which answers end with; set its eos_token")
        return int(eos)

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._tokenizer.added_tokens_decoder)

    def _with_bos(self, ids: list[int]) -> list[int]:
        return ids if ids[: len(self._bos)] == self._bos else self._bos + ids

    def _tokens_with_ends(self, texts: Sequence[str]) -> list[TokensWithEnds]:
        if not texts:
            return []
        tokens = self._tokenize(texts, return_offsets_mapping=True)
        return [
            TokensWithEnds(ids, np.array(offsets, np.int64).reshape(-1, 2)[:, 1])
            for ids, offsets in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True)
        ]

    def _ids(self, texts: Sequence[str], at_most: int | None = None, *, of_end: bool = False) -> list[list[int]]:
        """Tokens of each text; of one that is far longer than `at_most`, the first `at_most + 1`, or see `prompts`."""
        parts = [None if at_most is None else self._part(text, at_most, of_end) for text in texts]
        rest = [text for text, part in zip(texts, parts, strict=True) if part is None]
        wholes = iter(self._tokenize(rest)["input_ids"] if rest else [])
        return [next(wholes) if part is None else part for part in parts]

    def _part(self, text: str, at_most: int, of_end: bool) -> list[int] | None:
        """The tokens at an end of a text; None if it is short enough to be tokenized as a whole."""
        if of_end:
            last = self._long_texts.last(text, at_most)
            return None if last is None else [*self._long_texts.first_token(text), *last]
        first = self._long_texts.first(text, at_most + 1)
        return None if first is None else first.ids

    def _tokenize(self, texts: Sequence[str], **options: Any) -> Any:
        options = {"add_special_tokens": False, **options}
        return self._tokenizer(
            list(texts), return_attention_mask=False, return_token_type_ids=False, verbose=False, **options
        )
