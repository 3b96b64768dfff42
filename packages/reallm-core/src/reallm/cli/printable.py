"""Text of models and users on a terminal."""

from __future__ import annotations

import re

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """Text that cannot drive a terminal: control characters become escapes, such as `\\x1b`; newline and tab stay.

    Escapes, too: what reorders the characters around it (bidirectional embeddings, overrides and isolates), line
    separators, and halves of surrogate pairs.
    """
    return _UNSAFE.sub(lambda match: ascii(match[0])[1:-1], text)
