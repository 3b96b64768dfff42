"""Encodes better and worse answers to a prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reallm.data.chat.template import Conversation
from reallm.data.messages import Message, Tool, read_messages, read_tools
from reallm.data.row_formats.pairs import prompt_was_found
from reallm.data.rows import Row, describe
from reallm.data.tokenization.encoder import EncodedRow
from reallm.errors import counted
from reallm.seeding import derive_seed
from reallm_datasets.config import Overlong
from reallm_datasets.encoding import Encoded, Encoder, PromptAnswer
from reallm_datasets.limits import truncate_or_drop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Text = PromptAnswer | Conversation

MAX_MARGIN = float(np.finfo(np.float32).max)


class Pair(NamedTuple):
    """A better and a worse answer to a prompt, and by how much the one is better."""

    chosen: Text
    rejected: Text
    margin: float


class PairEncoder:
    """Fields of k pairs: `input_ids` int32 of 2k sequences, better and worse in turn, `seqlens` and `prompt_lens`.

    `seqlens` int64 [2k] are the lengths of the sequences; `prompt_lens` int64 [2k] says how many tokens at the
    beginning of each are the prompt's; `margins` float32 [k] has 0 for pairs without one.

    Args:
        tokenizer: the model's tokenizer.
        max_pairs_per_prompt: use at most so many pairs of a row, chosen by `seed` and the row's id.
        max_seqlen: longest sequence in tokens.
        overlong: what to do with longer ones: "truncate" them, or "drop" their pairs.
        seed: seed of the choice of pairs.
        tools: tools of conversations that have none of their own.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        max_pairs_per_prompt: int,
        max_seqlen: int,
        overlong: Overlong,
        seed: int,
        tools: Sequence[Tool],
    ) -> None:
        self._encoder = Encoder(tokenizer)
        self._max_pairs_per_prompt = max_pairs_per_prompt
        self._max_seqlen = max_seqlen
        self._overlong = overlong
        self._seed = seed
        self._tools = tools

    def encode(self, rows: Sequence[Row]) -> list[EncodedRow]:
        """See `reallm.data.tokenization.encoder.RowEncoder`."""
        pairs = [_chosen(self._pairs(row), self._max_pairs_per_prompt, row, self._seed) for row in rows]
        texts = [text for of_row in pairs for pair in of_row for text in (pair.chosen, pair.rejected)]
        sequences = iter(self._encoder.sequences(texts))
        return [self._encoded(sequences, of_row, row) for of_row, row in zip(pairs, rows, strict=True)]

    def _encoded(self, sequences: Iterator[Encoded], pairs: Sequence[Pair], row: Row) -> EncodedRow:
        """What becomes of the next pairs, those of `row`."""
        kept: list[Encoded] = []
        margins: list[float] = []
        remarks = ["with a prompt that both answers begin with"] if prompt_was_found(row) else []
        remarks += ["with a margin"] if "margin" in row else []
        for pair in pairs:
            remarks += pair.chosen.remarks if isinstance(pair.chosen, Conversation) else ()
            whole = [next(sequences), next(sequences)]
            fitted = [truncate_or_drop(one, self._max_seqlen, self._overlong) for one in whole]
            both = [sequence for sequence, _ in fitted if sequence is not None]
            what = {what for _, what in fitted if what}
            dropped = {phrase for phrase in what if phrase.startswith("dropped")}
            if np.array_equal(whole[0].ids, whole[1].ids):
                dropped = {"dropped: both answers are the same"}
            elif not dropped and np.array_equal(both[0].ids, both[1].ids):
                dropped = {f"dropped: the answers do not differ within {self._max_seqlen} tokens"}
            remarks += [f"pairs {phrase}" for phrase in sorted(dropped or what)]
            if dropped:
                continue
            if any(isinstance(text, PromptAnswer) and not text.answer for text in (pair.chosen, pair.rejected)):
                remarks.append("pairs with an empty answer")
            kept += both
            margins.append(pair.margin)
        if not kept:
            return EncodedRow(None, (*remarks, "without a pair left"))
        fields = {
            "input_ids": np.concatenate([sequence.ids for sequence in kept]),
            "seqlens": np.array([len(sequence.ids) for sequence in kept], np.int64),
            "prompt_lens": np.array([sequence.answer_mask.argmax() for sequence in kept], np.int64),
            "margins": np.array(margins, np.float32),
        }
        return EncodedRow(fields, tuple(remarks))

    def _pairs(self, row: Row) -> list[Pair]:
        """All pairs of a row, the better one first."""
        if "pos_answers" in row or "neg_answers" in row:
            prompt, pos, neg = row.text("prompt"), row.texts("pos_answers"), row.texts("neg_answers")
            if len(pos) != len(neg):
                raise row.error(
                    f"keys 'pos_answers' and 'neg_answers': found {len(pos)} and {len(neg)} texts, wanted as many"
                )
            answers = zip(pos, neg, _margins(row, len(pos)), strict=True)
            return [Pair(PromptAnswer(prompt, p), PromptAnswer(prompt, n), margin) for p, n, margin in answers]
        row.need_one_of("chosen", "pos_answers")
        (margin,) = _margins(row, 1)
        if isinstance(row.values["chosen"], list) or isinstance(row.values.get("prompt"), list):
            chosen, rejected = _messages(row, "chosen"), _messages(row, "rejected")
            if chosen[:-1] != rejected[:-1]:
                raise row.error("keys 'chosen' and 'rejected': the conversations differ before their last message")
            return [Pair(self._answer(chosen, row), self._answer(rejected, row), margin)]
        prompt = row.text("prompt")
        return [Pair(PromptAnswer(prompt, row.text("chosen")), PromptAnswer(prompt, row.text("rejected")), margin)]

    def _answer(self, messages: list[Message], row: Row) -> Conversation:
        chat = self._encoder.chat.conversation(messages, row, read_tools(row, self._tools), train_on="last")
        if not chat.turns:
            raise row.error(chat.remarks[0].removeprefix("dropped: "))
        return chat


def _messages(row: Row, key: str) -> list[Message]:
    """The whole conversation of `chosen` or `rejected`, with what comes from `prompt` if it begins with the answer."""
    given = row.values.get(key)
    answer: list[Message] = (
        [{"role": "assistant", "content": row.text(key)}] if isinstance(given, str) else read_messages(row, key)
    )
    if answer[-1]["role"] != "assistant":
        raise row.error(f"key '{key}': the last message is the {answer[-1]['role']}'s, wanted the assistant's")
    if answer[0]["role"] != "assistant" and isinstance(row.values.get("prompt"), str | None):
        return answer  # the conversation is whole; a `prompt` of text repeats its question
    if isinstance(row.values.get("prompt"), str):
        return [{"role": "user", "content": row.text("prompt")}, *answer]
    return [*read_messages(row, "prompt"), *answer]


def _margins(row: Row, n: int) -> list[float]:
    """The margins of a row's n pairs: its `margin`, a number for each pair or one for all; 0 without one."""
    if "margin" not in row:
        return [0.0] * n
    given, name = row.values["margin"], row.name("margin")
    if not isinstance(given, list):
        return [_margin(given, row, name)] * n
    if len(given) != n:
        raise row.error(f"key '{name}': found {describe(given)}, wanted a number for each of {counted(n, 'pair')}")
    return [_margin(one, row, f"{name}[{i}]") for i, one in enumerate(given)]


def _margin(given: Any, row: Row, name: str) -> float:
    value = math.nan
    if isinstance(given, str | int | float) and not isinstance(given, bool):
        with suppress(ValueError, OverflowError):  # tables of text have numbers as text
            value = float(given)
    if not abs(value) <= MAX_MARGIN:
        raise row.error(f"key '{name}': found {describe(given)}, wanted a finite number")
    return value


def _chosen(pairs: list[Pair], at_most: int, row: Row, seed: int) -> list[Pair]:
    if len(pairs) <= at_most:
        return pairs
    random = np.random.default_rng(derive_seed(seed, "pairs", row.id))
    return [pairs[i] for i in sorted(random.choice(len(pairs), at_most, replace=False))]
