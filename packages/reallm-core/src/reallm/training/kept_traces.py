"""Traces of activations that commands leave for each other, in a file of the user's cache.

A trace is a pure function of the architecture, of what is computed, and of the code: that of reallm and of torch. So a
file is named after these versions, and a changed source is another one. Layers of plugins are other code, and their
traces are not kept; nor are those on a CPU, which depend on its kernels. A file that is damaged, or cannot be written,
only costs the time of the traces.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from reallm.atomic_files import atomic_write
from reallm.data.cache_folder import is_unused, user_cache
from reallm.errors import ReallmError
from reallm.foreign_files import MAX_INTEGER, NOT_JSON, parse_json, read_bytes
from reallm.model.config import ReaLModelConfig, is_custom_class
from reallm.source_hash import source_hash

FOLDER = "traces"
"""Folder in the user's cache."""
ROOMS = ("model", "training")
"""The rooms whose code makes traces."""
MOST = 2000
"""Traces in a file; if there are more, it begins anew."""
MAX_BYTES = 1 << 20
"""The largest file that is read."""

Traces = dict[str, list[int]]
"""Key of a trace -> its numbers of bytes."""
R = TypeVar("R", bound=tuple[int, ...])

_TRACES: ContextVar[Traces | None] = ContextVar("traces", default=None)
"""Those that were kept before, and new ones."""


@contextmanager
def kept_traces() -> Iterator[None]:
    """Context in which traces of earlier commands are used, and new ones are kept for later ones."""
    file = _file()
    if file is None:
        yield
        return
    known = _read(file)
    traces = dict(known)
    token = _TRACES.set(traces)
    try:
        yield
    finally:
        _TRACES.reset(token)
    if len(traces) > len(known):
        _write(file, traces)


def kept(result: type[R]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorator of a function `trace(config, dtype, device, *others)`: calls with equal arguments give one result.

    Args:
        result: the named tuple of numbers of bytes that the function returns.
    """

    made: Callable[..., Any] = result

    def decorate(trace: Callable[..., R]) -> Callable[..., R]:
        @lru_cache(maxsize=256)
        def looked_up(config: ReaLModelConfig, dtype: torch.dtype, device: torch.device, *others: Any) -> R:
            traces = _TRACES.get()
            if traces is None or device.type != "meta" or _has_code_of_plugins(config):
                return trace(config, dtype, device, *others)
            key = hashlib.sha256(repr((trace.__name__, config, dtype, others)).encode()).hexdigest()[:32]
            found = traces.get(key)
            if found is None or len(found) != len(result.__annotations__):
                found = traces[key] = list(trace(config, dtype, device, *others))
            return cast(R, made(*found))

        return looked_up

    return decorate


def _has_code_of_plugins(config: ReaLModelConfig) -> bool:
    return bool(config.custom_classes) or (config.moe is not None and is_custom_class(config.moe.router))


def _file() -> Path | None:
    """Where traces are kept; None if they cannot be, or if somebody else could have written them."""
    with suppress(OSError, ReallmError):  # such as a user without a home
        folder = user_cache(FOLDER)
        return None if folder is None else folder / f"{_version()}.json"
    return None


def _version() -> str:
    """A hash of what traces depend on besides their arguments."""
    top = Path(__file__).parents[1]
    code = source_hash([top / room for room in ROOMS])
    about = (sys.version, torch.__version__, torch.version.git_version, code)
    return hashlib.sha256(repr(about).encode()).hexdigest()[:32]


def _read(file: Path) -> Traces:
    """The traces in a file; none if it is not as it was written."""
    try:
        content = parse_json(read_bytes(file, at_most=MAX_BYTES))
        os.utime(file)  # when it was last used
    except (OSError, *NOT_JSON):
        return {}
    is_whole = isinstance(content, dict) and all(
        isinstance(one, list) and all(map(_is_size, one)) for one in content.values()
    )
    return content if is_whole else {}


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_INTEGER


def _write(file: Path, traces: Traces) -> None:
    """Write a file, with what another command has added meanwhile, and remove those that were not used for long."""
    content = {**_read(file), **traces}
    with suppress(OSError, ReallmError), atomic_write(file) as temporary:
        temporary.write_text(json.dumps(content if len(content) <= MOST else traces))
    with suppress(OSError):
        for other in file.parent.glob("*.json"):
            if is_unused(other):
                other.unlink()
