"""Notices: single lines about what a user should know, through Python's logger `reallm`, which shows them on stderr."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from reallm.printable import printable_line

LOGGER = logging.getLogger("reallm")


@cache
def notify_once(text: str) -> None:
    """Log a notice of one line as a warning, the first time that this process has it to say."""
    LOGGER.warning("note: %s", printable_line(text))


@contextmanager
def silenced_notices() -> Iterator[None]:
    """Context in which notices are not shown, because another process of the job shows the same."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
