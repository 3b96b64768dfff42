"""Fields of configuration dataclasses, with their help texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, Field, field, fields
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


def changed(config: Any, keys: Iterable[str] | None = None) -> dict[str, Any]:
    """The fields of a configuration whose values are not the defaults: of `keys`, in their order, or of all."""
    defaults = {item.name: default_of(item) for item in fields(config)}
    values = {key: getattr(config, key) for key in (defaults if keys is None else keys)}
    return {key: value for key, value in values.items() if value != defaults[key]}


def default_of(item: Field[Any]) -> Any:
    """The default value of a field; MISSING if it must be given."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def copy_of_field(item: Field[Any]) -> Any:
    """A new field with the same default and metadata, for another dataclass."""
    if item.default_factory is not MISSING:
        return field(default_factory=item.default_factory, metadata=item.metadata)
    return field(default=item.default, metadata=item.metadata)
