"""Presets of a configuration: named sets of defaults, which whatever is given overrides. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from reallm.arguments import NamedFields
from reallm.config.assignments import Assignment

PRESET = "preset"
"""The key that chooses a preset."""


class Presets(NamedFields):
    """Base class of configuration dataclasses with a field `preset`, whose `__post_init__` calls `apply_preset`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Name of a preset -> its value of each field that it sets."""
    _given: frozenset[str]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Remember which fields are given, before their defaults are filled in."""
        instance = super().__new__(cls, *args, **kwargs)
        object.__setattr__(instance, "_given", frozenset(kwargs))
        return instance

    def apply_preset(self) -> None:
        """Set the fields of the chosen preset that the constructor was not given."""
        for key, value in self.presets.get(getattr(self, PRESET), {}).items():
            if key not in self._given:
                object.__setattr__(self, key, value)


def with_preset(config_class: type, assignments: Sequence[Assignment]) -> list[Assignment]:
    """The assignments of a file or a command line, after those of the preset that it chooses."""
    chosen = next((item for item in reversed(assignments) if item.key == PRESET), None)
    if chosen is None or not issubclass(config_class, Presets):
        return list(assignments)
    values = config_class.presets.get(chosen.text or str(chosen.value), {})
    return [*(Assignment(key, value, origin=chosen.origin) for key, value in values.items()), *assignments]
