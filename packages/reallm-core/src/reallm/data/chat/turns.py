"""Finds a turn of the assistant in the text of a whole conversation. Pure functions on texts."""

from __future__ import annotations

import re
from typing import NamedTuple

from reallm.data.messages import REASONING, Message

_THINK = re.compile(r"</?think>")
_TAG = re.compile(r"<[^<>]*>|\[/?[A-Z_]+\]|\s")


class Turn(NamedTuple):
    """The characters `start` to `end` of a text, and what the template has left out at the beginning of the turn."""

    start: int
    end: int
    left_out: str


def find_turn(whole: str, before: str, after: str) -> Turn | None:
    """A turn in the text of a conversation; None if its prompt differs there, or the turn other than at its beginning.

    Args:
        whole: the text of the conversation.
        before: the prompt from which the model is to write the turn.
        after: the text of the conversation up to and including the turn; it begins with the prompt.

    Example:
        The template leaves out the reasoning of a turn as soon as another one follows.

        >>> find_turn("Q: 1+1?\\nA: 2.\\nQ: ...", "Q: 1+1?\\nA: ", "Q: 1+1?\\nA: <think>easy</think>2.\\n")
        Turn(start=11, end=14, left_out='<think>easy</think>')
    """
    if not whole.startswith(before) or not after.startswith(before):
        return None
    turn, start = after[len(before) :], len(before)
    length = len(turn) if whole.startswith(turn, start) else _overlap(turn, whole[start : start + len(turn)])
    return Turn(start, start + length, turn[: len(turn) - length])


def _overlap(text: str, following: str) -> int:
    """The length of the longest end of a text that another one begins with.

    Linear in both, by the matching of Knuth, Morris and Pratt: a turn may be long, and repeat itself.
    """
    borders = [0]  # for each beginning of `following`: how much of its end, less than all, is at its beginning too

    def extended(length: int, character: str) -> int:
        while length and following[length : length + 1] != character:
            length = borders[length - 1]
        return length + (following[length : length + 1] == character)

    for character in following[1:]:
        borders.append(extended(borders[-1], character))
    length = 0
    for character in text:
        length = extended(length, character)
    return length


def is_complete(turn: Turn, text: str, message: Message) -> bool:
    """Whether the text of a turn has all that the message says.

    Nothing but tags may be left out, such as the empty `<think></think>` of some templates, and no reasoning.
    """
    shown = text[turn.start : turn.end]
    return not _TAG.sub("", turn.left_out) and all(part in shown for part in reasoning(message))


def reasoning(message: Message) -> list[str]:
    """The reasoning of a message: in keys of its own, or in its content before `</think>`."""
    found = [message.get(key) for key in REASONING]
    *thoughts, _ = _THINK.split(message.get("content", ""))
    parts = [part.strip() for part in (*found, *thoughts) if isinstance(part, str)]
    return [part for part in dict.fromkeys(parts) if part]
