"""Splits rows in two by a hash of their content. Imports no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reallm.data.row import Row


@dataclass(frozen=True)
class RowSplit:
    """One side of a split of rows into training and validation data.

    A row is on the same side in every run: its side depends on its content alone, not on a seed, its position or its
    `id`. Equal rows are on the same side, so that nothing is evaluated that was trained; keys with the value null do
    not count, because tables have them where other files have none.

    Args:
        valid_fraction: share of the rows that are validation data, about: 0.02.
        is_valid: whether this is the side of the validation data.
    """

    valid_fraction: float
    is_valid: bool

    def __contains__(self, row: Row) -> bool:
        return (_position(row.values) < self.valid_fraction) == self.is_valid


def _position(values: Mapping[str, Any]) -> float:
    """A number from 0 to 1 that depends on the values of a row."""
    content = {key: value for key, value in values.items() if key != "id"}
    text = json.dumps(_plain(content), sort_keys=True, default=repr)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _plain(value: Any) -> Any:
    """The value without nulls in mappings."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
