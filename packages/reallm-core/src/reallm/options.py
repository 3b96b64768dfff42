"""Fields of configuration dataclasses, with their help texts."""

from __future__ import annotations

from dataclasses import MISSING, Field, field
from typing import Any

REQUIRED: Any = "???"
"""Default of a field that the user must give (OmegaConf's mark of a missing value)."""


def option(default: Any, help: str) -> Any:  # noqa: A002 - its name in argparse and typer
    """A dataclass field with a default (lists and dicts are copied for each instance) and its line in `--help`."""
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata={"help": help})
    return field(default=default, metadata={"help": help})


def is_missing(value: Any) -> bool:
    """Whether a value is `REQUIRED`: the user has not given it. A value of any type will do, also an array."""
    return isinstance(value, str) and value == REQUIRED


def copy_of_field(item: Field[Any]) -> Any:
    """A new field with the same default and metadata, for another dataclass."""
    if item.default_factory is not MISSING:
        return field(default_factory=item.default_factory, metadata=item.metadata)
    return field(default=item.default, metadata=item.metadata)
