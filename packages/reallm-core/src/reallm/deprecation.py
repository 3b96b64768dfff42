"""What plugins may still do but should not: said once, with what takes its place, and never in a user's way.

    deprecated("the field 'qkv_bias' of ReaLModelConfig", instead="'q_bias', 'k_bias' and 'v_bias'",
               since="1.1", removed_in="2.0")

The loader listens while it imports a plugin and calls its hooks, adds the plugin's name, and keeps what it heard as
notes for `reallm plugins`. Versions are those of the hook API; see `docs/plugins.md` for what grows them.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_NEVER_BLAMED = frozenset({"reallm", "reallm_devkit", "dataclasses", "functools", "importlib"})
"""Packages whose frames lie between a plugin's line and `deprecated`; the line to change is not theirs."""


class HookDeprecationWarning(DeprecationWarning):
    """Something of the hook API that is going to be removed.

    Attributes:
        message: `the field 'qkv_bias' is deprecated since hook API 1.1 and goes with 2.0; use 'q_bias'`.
        filename: the file of the plugin's line that used it.
        lineno: its number, from 1.
    """

    def __init__(self, message: str, filename: str, lineno: int) -> None:
        super().__init__(message, filename, lineno)  # all of them, or it could not be pickled
        self.message = message
        self.filename = filename
        self.lineno = lineno

    def __str__(self) -> str:
        return f"{self.message} ({'/'.join(Path(self.filename).parts[-2:])}:{self.lineno})"


def deprecated(what: str, *, instead: str, since: str, removed_in: str, stacklevel: int | None = None) -> None:
    """Warn that something of the hook API is going to be removed.

    Python shows it once for each line that causes it, and by default only to authors: in tests and in `__main__`.

    Args:
        what: what is deprecated, as its author knows it: `the field 'qkv_bias' of ReaLModelConfig`.
        instead: what takes its place.
        since: the minor version that deprecated it, `"1.1"`.
        removed_in: the major version that removes it, `"2.0"`.
        stacklevel: as for `warnings.warn`: 1 blames the line that calls this, 2 the line that called that function.
            None blames the innermost line outside of `reallm`: the plugin's, if this is called while it makes a value.
    """
    assert _version(since) < _version(removed_in), f"{what}: deprecated in {since}, after it goes in {removed_in}"
    assert _version(removed_in)[1] == 0, f"{what}: only a major version removes things, and {removed_in} is none"
    frame = _foreign_frame() if stacklevel is None else sys._getframe(stacklevel)
    warning = HookDeprecationWarning(
        f"{what} is deprecated since hook API {since} and goes with {removed_in}; use {instead}",
        frame.f_code.co_filename,
        frame.f_lineno,
    )
    registry = frame.f_globals.setdefault("__warningregistry__", {})  # where Python keeps what it has shown
    module = frame.f_globals.get("__name__", "<unknown>")
    warnings.warn_explicit(warning, HookDeprecationWarning, warning.filename, warning.lineno, module, registry)


def give(warning: HookDeprecationWarning) -> None:
    """Show a warning that was heard, at the line that it is about."""
    warnings.warn_explicit(warning, HookDeprecationWarning, warning.filename, warning.lineno)


@contextmanager
def listening() -> Iterator[list[HookDeprecationWarning]]:
    """Collect the deprecations of a block instead of showing them; other warnings go their usual way after it.

        with listening() as heard:
            module = importlib.import_module("my_plugin")
        print(*heard)

    The list is filled when the block ends. Each text is in it once.
    """
    heard: list[HookDeprecationWarning] = []
    others: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as recorded:
            warnings.simplefilter("always", HookDeprecationWarning)
            try:
                yield heard
            finally:
                for entry in recorded:
                    if not isinstance(entry.message, HookDeprecationWarning):
                        others.append(entry)
                    elif str(entry.message) not in map(str, heard):
                        heard.append(entry.message)
    finally:
        for entry in others:
            warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno, source=entry.source)


def _foreign_frame() -> FrameType:
    """The innermost frame whose module is not one of `reallm`; the outermost if all are."""
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_blameless(frame):
        frame = frame.f_back
    return frame


def _is_blameless(frame: FrameType) -> bool:
    # A dataclass's __init__ has no file, but runs in the name space of the module that defines it.
    return str(frame.f_globals.get("__name__", "")).partition(".")[0] in _NEVER_BLAMED


def _version(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)\.(\d+)", text)
    assert match is not None, f"{text!r} is not a version such as '1.1'"
    return int(match[1]), int(match[2])
