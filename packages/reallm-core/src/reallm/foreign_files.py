"""The boundary to files that others wrote: checkpoints, tokenizers, templates, configurations, run folders, metadata.

Whatever such a file holds, the user gets one line that names the file and the remedy. What parses and uses it may raise
anything on content that it does not expect, from `RecursionError` to panics of Rust: `reading` is the one place where
all of that is caught, and the functions below it read text and JSON within bounds. `check_own` is the one place that
says which links in a folder of strangers are followed when it is read, and `check_own_entries` before it is written.
Imports no torch.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reallm.errors import CheckpointError, ReallmError, cut, short_reason
from reallm.git_lfs import is_lfs_pointer, lfs_pointer_problem
from reallm.machine_errors import shortage
from reallm.printable import printable_line

MAX_BYTES = 1 << 26
"""The largest JSON file that is read: six times the index of the largest checkpoints on the hub."""

MAX_DEPTH = 100
"""The deepest nesting of JSON that is read; files of checkpoints and runs have less than ten."""

MAX_INTEGER = (1 << 63) - 1
"""The largest whole number, positive or negative, that a value of a file may be where a number is used."""

_CONTAINERS = (dict, list)
_LONGEST_REASON = 300


@contextmanager
def reading(
    source: object,
    remedy: str = "",
    *,
    error: type[ReallmError] = CheckpointError,
    problem: str = "cannot be read",
    passing: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Context in which the content of a foreign file is parsed or first used: any exception becomes one line.

    Errors that have a message for users already pass, and so do interrupts and a lack of memory, files or threads.

    Args:
        source: the file, or what of it is read, for the message.
        remedy: the end of the message: what to do.
        error: class of the error.
        problem: what is wrong if anything is.
        passing: exceptions of which the caller makes a better message.

    Raises:
        ReallmError: of the class `error`, for every other `Exception`, and for a panic of a Rust library.
    """
    try:
        yield
    except ReallmError:
        raise
    except passing:
        raise
    except BaseException as raised:
        # a panic in an extension written in Rust is no `Exception`, and its class cannot be imported
        is_panic = type(raised).__name__ == "PanicException"
        if not is_panic and (not isinstance(raised, Exception) or shortage(raised) is not None):
            raise
        end = f"; {remedy}" if remedy else ""
        raise error(f"{source} {problem} ({reason_of(raised)}){end}") from raised


def reason_of(error: BaseException) -> str:
    """The message of another library's error about a foreign file: short, on one line, without control characters."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    missing = "there is no " if isinstance(error, KeyError) else ""
    return cut(missing + printable_line(short_reason(error)), _LONGEST_REASON)


def shown(value: object, length: int = 60) -> str:
    """A value from a foreign file for a message: as Python writes it, short and on one line."""
    return cut(printable_line(repr(value)), length)


def check_regular(file: Path) -> None:
    """Raise an error unless a file, or what it is a link to, is a regular one: opening a pipe would wait."""
    mode = file.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
    if not stat.S_ISREG(mode):
        raise ValueError("it is not a regular file")


def check_own(file: Path, folder: Path | None = None, error: type[ReallmError] = CheckpointError) -> None:
    """Check that a file of a folder, such as a checkpoint's, is a regular one that lies in this folder.

    The folder itself may be reached over links. Its files may be links within it, and in the cache of the hub, where
    they are links to the blobs of the same model: `models--org--name/snapshots/HASH/file -> ../../blobs/...`. A link
    that leads anywhere else could make a secret of this machine part of what is read, and of the next checkpoint.

    Args:
        file: the file, which need not exist.
        folder: the folder that it belongs to, if that is not its own.
        error: class of the error.

    Raises:
        ReallmError: of the class `error`: the file is a link that leads out of the folder.
        OSError: it is a folder, or does not exist.
        ValueError: it is neither a file nor a folder: a pipe, a device, a socket.
    """
    target = Path(os.path.realpath(file))
    if not any(target.is_relative_to(place) for place in _places_of_files(folder or file.parent)):
        raise error(
            f"{file} is a link that leads out of its folder, to {shown(str(target), 200)}, and is not followed; "
            "put the file itself in its place if you trust it"
        )
    check_regular(file)


def check_own_entries(folder: Path, *, below: Sequence[str] = (), error: type[ReallmError] = CheckpointError) -> None:
    """Check that what lies in a folder, in which files are about to be written, stays in it.

    Whoever writes through a link of a stranger's changes, or removes, what the link leads to.

    Args:
        folder: the folder, which may itself be reached over links.
        below: names of folders in it that are looked through to the bottom; of others only the entry itself is.
        error: class of the error.

    Raises:
        ReallmError: of the class `error`: an entry is a link that leads out of the folder, or a pipe, device or socket.
    """
    real = Path(os.path.realpath(folder))
    walked = [walk for name in below for walk in os.walk(folder / name)]
    inner = [Path(top, name) for top, folders, files in walked for name in (*folders, *files)]
    for entry in (*sorted(folder.iterdir()), *inner):
        target = Path(os.path.realpath(entry))
        if not target.is_relative_to(real):
            raise error(
                f"{entry} is a link that leads out of {folder}, to {shown(str(target), 200)}, and nothing is written "
                "there; remove it, or put what it leads to in its place if you trust it"
            )
        if target.exists() and not target.is_dir():
            with reading(entry, "remove it", error=error):
                check_regular(entry)


def _places_of_files(folder: Path) -> tuple[Path, ...]:
    """The real folders in which the files of a folder may lie."""
    real = Path(os.path.realpath(folder))
    in_cache = real.parent.name == "snapshots" and real.parents[1].name.startswith("models--")
    return (real, real.parents[1] / "blobs") if in_cache else (real,)


def read_bytes(file: Path, *, at_most: int = MAX_BYTES) -> bytes:
    """The content of a regular file of a bounded size; errors are those of the system, or a ValueError."""
    check_regular(file)
    with file.open("rb") as opened:
        content = opened.read(at_most + 1)
    if len(content) > at_most:
        raise ValueError(f"it is larger than {at_most >> 20} MiB")
    return content


NOT_JSON = (ValueError, RecursionError)
"""What `parse_json` raises."""


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text, which may not be nested more than `MAX_DEPTH` deep.

    Raises:
        ValueError: it is no JSON, or a whole number has thousands of digits.
        RecursionError: it is nested too deeply.
    """
    value = json.loads(text)
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raise RecursionError if a value of JSON is nested more than `MAX_DEPTH` deep."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner: list[Any] = []
        for one in level:
            if type(one) in _CONTAINERS:  # faster than `isinstance` where most are numbers and texts
                inner += one.values() if isinstance(one, dict) else one
        level = inner
        if not level:
            return
    raise RecursionError


def json_or_none(text: str | bytes) -> Any:
    """The value of a JSON text, as `parse_json` gives it; None for any other text."""
    try:
        return parse_json(text)
    except NOT_JSON:
        return None


def read_json_object(
    file: Path,
    remedy: str = "download or copy it again",
    *,
    error: type[ReallmError] = CheckpointError,
    at_most: int = MAX_BYTES,
) -> dict[str, Any]:
    """The object in a JSON file; the arguments are those of `reading`, and the largest size in bytes.

    Raises:
        ReallmError: of the class `error`: the file is missing, a link out of its folder, a Git LFS pointer, too large,
            no JSON, or not that of an object.
    """
    with reading(file, remedy, error=error, problem="cannot be read as JSON"):
        check_own(file, error=error)
        try:
            content = parse_json(read_bytes(file, at_most=at_most).decode("utf-8"))
        except ValueError:
            if is_lfs_pointer(file):
                raise error(lfs_pointer_problem(file)) from None
            raise
    if not isinstance(content, dict):
        raise error(f"{file} must hold a JSON object, not {type(content).__name__}; {remedy}")
    return content


def is_finite_number(value: object) -> bool:
    """Whether a value is a number that can be computed with: no boolean, not NaN, not infinite, at most 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= MAX_INTEGER if isinstance(value, int) else math.isfinite(value)
