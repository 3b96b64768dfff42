"""Base class of groups of configuration keys: it names the right key for a wrong one. Imports no torch."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, ClassVar

from reallm.arguments import NamedFields
from reallm.config.foreign_keys import explanation, our_key


class ConfigGroup(NamedFields):
    """Base class of the dataclasses of a configuration, for use in Python.

    An unknown field is a ConfigError that says what to write: `OptimizerConfig(learning_rate=1e-5)` suggests `lr`,
    and `SFTConfig(learning_rate=1e-5)` suggests `optimizer=OptimizerConfig(lr=...)`. Names of other tools are known as
    on the command line.

    Args of the class statement:
        group: the key of the group, such as `optimizer`; that of the base class if it is left out.
    """

    _group: ClassVar[str] = ""

    def __init_subclass__(cls, group: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if group is not None:
            cls._group = group

    @classmethod
    def _hint(cls, name: str, names: Sequence[str]) -> str:
        group, _, leaf = (our_key(name) or "").rpartition(".")
        if group == cls._group and leaf in names:
            return f"; did you mean '{leaf}'?"
        if not cls._group and group in names:
            return _nested_hint(cls, group, leaf)
        if sentence := explanation(name):
            return f": {sentence}"
        for nested, hint_type in typing.get_type_hints(cls).items():
            if dataclasses.is_dataclass(hint_type) and any(name == item.name for item in dataclasses.fields(hint_type)):
                return _nested_hint(cls, nested, name)
        return super()._hint(name, names)


def _nested_hint(cls: type, group: str, leaf: str) -> str:
    """`; write optimizer=OptimizerConfig(lr=...)`, for a field of a nested configuration."""
    nested = typing.get_type_hints(cls)[group]
    is_known = dataclasses.is_dataclass(nested)
    return f"; write {group}={nested.__name__}({leaf}=...)" if is_known else f"; it is '{leaf}' of the {group}"
