"""Encoders that workers can import."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import numpy as np

from reallm.data.rows import Row
from reallm.data.tokenization.encoder import EncodedRow

WORDS = ["hello", "no way!", "a", "much too long to keep", "xyz"]
"""Texts for `LetterEncoder`: one has a remark, one is dropped."""


class LetterEncoder:
    """The code points of `text` as `letters` int32 [L] and whether they are vowels; drops rows that are longer than 9.

    `die` kills the process that encodes a row with this text, unless it is the process `parent`.
    """

    def __init__(self, *, die: str = "", fail_outside_of: int | None = None) -> None:
        self.die = die
        self.parent = os.getpid()
        self.fail_outside_of = fail_outside_of

    def encode(self, rows: Sequence[Row]) -> list[EncodedRow]:
        if self.fail_outside_of not in (None, os.getpid()):
            raise RuntimeError("only the parent can do this")
        return [self._encoded(row.text("text")) for row in rows]

    def _encoded(self, text: str) -> EncodedRow:
        if text == self.die and os.getpid() != self.parent:
            os.kill(os.getpid(), signal.SIGKILL)
        if len(text) > 9:
            return EncodedRow(None, ("dropped: longer than 9 letters",))
        letters = np.array([ord(letter) for letter in text], np.int32)
        remarks = ("with an exclamation mark",) if "!" in text else ()
        return EncodedRow({"letters": letters, "vowels": np.isin(letters, [ord(v) for v in "aeiou"])}, remarks)


class OnlyHereEncoder(LetterEncoder):
    """Cannot be unpickled in another process."""

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickle, (os.getpid(),)


def _unpickle(pid: int) -> OnlyHereEncoder:
    if os.getpid() != pid:
        raise ImportError("code that only the user's process has")
    return OnlyHereEncoder()
