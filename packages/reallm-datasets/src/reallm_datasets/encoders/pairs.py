"""Reads pairs of a better and a worse answer to a prompt, in every form that rows give them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from reallm.data.chat.template import Conversation
from reallm.data.messages import Message, Tool, read_messages, read_tools
from reallm.data.row_formats.formats import check_column
from reallm.data.rows import Row, describe
from reallm.errors import counted
from reallm_datasets.encoding import Encoder, PromptAnswer

Text = PromptAnswer | Conversation

MAX_MARGIN = float(np.finfo(np.float32).max)


class Pair(NamedTuple):
    """A better and a worse answer to a prompt, and by how much the one is better."""

    chosen: Text
    rejected: Text
    margin: float


def has_pairs(row: Row) -> bool:
    """Whether a row has a key with better or worse answers."""
    return any(key in row for key in ("chosen", "rejected", "pos_answers", "neg_answers"))


def read_pairs(row: Row, encoder: Encoder, tools: Sequence[Tool]) -> list[Pair]:
    """All pairs of a row. Raises DataError if a key is missing or wrong, or the conversations differ too early.

    Args:
        row: the row.
        encoder: encoder of the tokenizer, for its chat template.
        tools: tools of conversations that have none of their own.
    """
    if "pos_answers" in row or "neg_answers" in row:
        prompt, pos, neg = row.text("prompt"), row.texts("pos_answers"), row.texts("neg_answers")
        if len(pos) != len(neg):
            raise row.error(
                f"keys 'pos_answers' and 'neg_answers': found {len(pos)} and {len(neg)} texts, wanted as many"
            )
        answers = zip(pos, neg, _margins(row, len(pos)), strict=True)
        return [Pair(PromptAnswer(prompt, p), PromptAnswer(prompt, n), margin) for p, n, margin in answers]
    if "rejected" not in row:
        if "chosen" not in row and "label" in row:
            raise row.error(
                f"it has one answer and '{row.name('label')}', which "
                "dataset.name=unpaired_preference reads; pairs have 'chosen' and 'rejected'"
            )
        row.need_one_of("chosen", "pos_answers")
    for key in ("chosen", "rejected"):
        check_column(row, key, "text or a list of messages")
    (margin,) = _margins(row, 1)
    if isinstance(row.values["chosen"], list) or isinstance(row.values.get("prompt"), list):
        chosen, rejected = _messages(row, "chosen"), _messages(row, "rejected")
        if chosen[:-1] != rejected[:-1]:
            raise row.error("keys 'chosen' and 'rejected': the conversations differ before their last message")
        better, worse = (last_answer(one, row, encoder, tools) for one in (chosen, rejected))
        return [Pair(better, worse, margin)]
    prompt = row.text("prompt")
    return [Pair(PromptAnswer(prompt, row.text("chosen")), PromptAnswer(prompt, row.text("rejected")), margin)]


def last_answer(messages: Sequence[Message], row: Row, encoder: Encoder, tools: Sequence[Tool]) -> Conversation:
    """A conversation, of which the last turn is the answer. Raises DataError if the chat template cannot write it."""
    chat = encoder.chat.conversation(messages, row, read_tools(row, tools), train_on="last")
    if not chat.turns:
        raise row.error(chat.remarks[0].removeprefix("dropped: "))
    return chat


def has_empty_answer(text: Text) -> bool:
    """Whether the answer of a text without a chat template is empty."""
    return isinstance(text, PromptAnswer) and not text.answer


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
