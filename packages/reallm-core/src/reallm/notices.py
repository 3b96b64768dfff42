"""Notices: single lines about what a user should know, through Python's logger `reallm`, which shows them on stderr."""

from __future__ import annotations

import logging
from functools import cache

LOGGER = logging.getLogger("reallm")


@cache
def notify_once(text: str) -> None:
    """Log a notice of one line as a warning, the first time that this process has it to say."""
    LOGGER.warning("note: %s", text)


def silence_notices() -> None:
    """Show no notices of this process, because another one shows the same."""
    LOGGER.setLevel(logging.ERROR)
