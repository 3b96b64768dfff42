r"""The argument of the last `\boxed{...}` of a text, in which answers of mathematics are given."""

from __future__ import annotations

import re

_OPENING = re.compile(r"\\f?box(?:ed)?\s*\{")


def last_boxed(text: str) -> str | None:
    r"""What the braces of the last complete `\boxed{...}` or `\fbox{...}` hold; None without one.

    Escaped braces, as in `\boxed{\{1, 2\}}`, neither open nor close.
    """
    for opening in reversed(list(_OPENING.finditer(text))):
        argument = _argument(text, opening.end())
        if argument is not None:
            return argument
    return None


def _argument(text: str, start: int) -> str | None:
    depth = 1
    for brace in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if not depth:
            return text[start : start + brace.start()]
    return None
