"""The standard streams of the command `reallm`: closed ones, full disks, and readers that go away."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from reallm.launch.end_with_launcher import LAUNCHER_PIPE


def open_closed_streams() -> None:
    """Put the null device in place of closed standard streams, so that no other file gets their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, "w", encoding="utf-8", closefd=False))  # noqa: SIM115


def output_problem() -> str | None:
    """Why standard output cannot be written; None if it can."""
    try:
        sys.stdout.write("\n")  # a flush alone succeeds: what could not be written is dropped
        sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout)
        return error.strerror
    return None


def discard(stream: TextIO) -> None:
    """Drop what is buffered for a stream that cannot be written, and all that follows; flushing it would fail."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def tell(line: str) -> None:
    """Write to standard error, if that is possible; nobody else could be told that it is not."""
    try:
        sys.stderr.write(line)
        sys.stderr.flush()
    except OSError:
        discard(sys.stderr)


def tell_interrupted() -> None:
    """Say that Ctrl-C has ended the command; of the processes of a job, the one that launched them does."""
    if LAUNCHER_PIPE not in os.environ:
        tell("\ninterrupted\n")


@contextmanager
def outliving_readers() -> Iterator[None]:
    """Context of work that is worth more than what it prints: it goes on without its output.

    When the reader of a pipe (`| head`, `| tee log`) or the terminal has gone, or the disk of a log is full, a line on
    standard error says so, once, and what is printed from then on is dropped.
    """
    outer = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        cast(TextIO, _Dispensable(outer[0], "standard output")),
        cast(TextIO, _Dispensable(outer[1])),
    )
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = outer


class _Dispensable:
    """A standard stream without errors of writing; they are told if it has a name."""

    def __init__(self, stream: TextIO, name: str | None = None) -> None:
        self._stream, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._do_without(error)
        return len(text)

    def flush(self) -> None:
        """Write or drop what is buffered."""
        try:
            self._stream.flush()
        except OSError as error:
            self._do_without(error)

    def _do_without(self, error: OSError) -> None:
        discard(self._stream)
        self._stream.flush()
        if self._name is not None:
            tell(f"{self._name} cannot be written ({error.strerror}); going on without it\n")
