"""Deprecation warnings of the hook API: shown to plugin authors, once for each line, with the replacement.

    deprecated("the field 'qkv_bias' of ReaLModelConfig", instead="'q_bias', 'k_bias' and 'v_bias'",
               since="1.1", removed_in="2.0")

The loader collects them while it imports a plugin and calls its hooks, adds the plugin's name, and keeps them as notes
for `reallm plugins`. Versions are those of the hook API; `docs/plugins.md` has the policy.
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
"""Packages whose frames are between a plugin's line and `deprecated`; they do not have the line to change."""


class HookDeprecationWarning(DeprecationWarning):
    """A plugin uses something of the hook API that will be removed.

    Attributes:
        message: `the field 'qkv_bias' is deprecated since hook API 1.1 and will be removed in 2.0; use 'q_bias'`.
        filename: the file of the plugin's line that uses it.
        lineno: number of the line, from 1.
    """

    def __init__(self, message: str, filename: str, lineno: int) -> None:
        super().__init__(message, filename, lineno)  # all arguments, or it could not be pickled
        self.message = message
        self.filename = filename
        self.lineno = lineno

    def __str__(self) -> str:
        return f"{self.message} ({'/'.join(Path(self.filename).parts[-2:])}:{self.lineno})"


def deprecated(what: str, *, instead: str, since: str, removed_in: str, stacklevel: int | None = None) -> None:
    """Warn that something of the hook API will be removed.

    Python shows the warning once for each line that causes it, by default only in tests and in `__main__`.

    Args:
        what: the deprecated thing, in terms that the plugin's author knows: `the field 'qkv_bias' of ReaLModelConfig`.
        instead: its replacement.
        since: the minor version that deprecated it, `"1.1"`.
        removed_in: the major version that removes it, `"2.0"`.
        stacklevel: stack level as in `warnings.warn`: 1 blames the line that calls this, 2 the line that called that
            function. None blames the innermost line outside of `reallm`, which is the plugin's while it constructs a
            value.
    """
    assert _version(since) < _version(removed_in), f"{what}: deprecated in {since}, after it goes in {removed_in}"
    assert _version(removed_in)[1] == 0, f"{what}: only a major version removes things, and {removed_in} is not one"
    frame = _foreign_frame() if stacklevel is None else sys._getframe(stacklevel)
    warning = HookDeprecationWarning(
        f"{what} is deprecated since hook API {since} and will be removed in {removed_in}; use {instead}",
        frame.f_code.co_filename,
        frame.f_lineno,
    )
    registry = frame.f_globals.setdefault("__warningregistry__", {})  # where Python records shown warnings
    module = frame.f_globals.get("__name__", "<unknown>")
    warnings.warn_explicit(warning, HookDeprecationWarning, warning.filename, warning.lineno, module, registry)


def show(warning: HookDeprecationWarning) -> None:
    """Show a collected warning, at the line that caused it."""
    warnings.warn_explicit(warning, HookDeprecationWarning, warning.filename, warning.lineno)


@contextmanager
def collect_deprecations() -> Iterator[list[HookDeprecationWarning]]:
    """Context that collects deprecations instead of showing them; other warnings are shown after it.

        with collect_deprecations() as collected:
            module = importlib.import_module("my_plugin")
        print(*collected)

    The list is filled when the block ends, each text once.
    """
    collected: list[HookDeprecationWarning] = []
    others: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as recorded:
            warnings.simplefilter("always", HookDeprecationWarning)
            try:
                yield collected
            finally:
                for entry in recorded:
                    if not isinstance(entry.message, HookDeprecationWarning):
                        others.append(entry)
                    elif str(entry.message) not in map(str, collected):
                        collected.append(entry.message)
    finally:
        for entry in others:
            warnings.warn_explicit(entry.message, entry.category, entry.filename, entry.lineno, source=entry.source)


def _foreign_frame() -> FrameType:
    """The innermost frame whose module is outside of `reallm`; the outermost frame if there is none."""
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
