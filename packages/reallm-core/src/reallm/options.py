"""Fields of configuration dataclasses, with their help texts."""

from __future__ import annotations

from dataclasses import field
from typing import Any

REQUIRED: Any = "???"
"""Default of a field that the user must give (OmegaConf's mark of a missing value)."""


def option(default: Any, help: str) -> Any:  # noqa: A002 - its name in argparse and typer
    """A dataclass field with a default (lists and dicts are copied for each instance) and its line in `--help`."""
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata={"help": help})
    return field(default=default, metadata={"help": help})
