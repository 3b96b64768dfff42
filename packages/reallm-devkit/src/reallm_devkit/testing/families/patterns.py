"""Patterns over blocks: keys from which transformers computes lists with an entry per block, as in "every 4th"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from reallm.hf.conversion.transformers_io import transformers_keys
from reallm.hf.tables.ignored_keys import is_irrelevant
from reallm_devkit.testing.families import reference
from reallm_devkit.testing.families.block_kinds import per_block_lists
from reallm_devkit.testing.families.values import Change, switched_on

Raw = Mapping[str, Any]
PatternChanges = Mapping[str, list[Change]]
"""Key -> changes that give it other values and leave out the lists that transformers computes from it."""


def pattern_changes(raw: Raw, row_keys: Iterable[str]) -> PatternChanges:
    """Changes of keys that give transformers other lists with an entry per block; one for each list that differs.

    Args:
        raw: the configuration that is changed.
        row_keys: keys of the family's rows, which may be ones that transformers' class does not declare.
    """
    given = per_block_lists(raw)
    found: dict[str, list[Change]] = {}
    # all lists at once, and one by one: some are computed from others
    for keys in dict.fromkeys([tuple(given), *((key,) for key in given)]):
        left_out = {**raw, **dict.fromkeys(keys)}
        by_default = _lists(left_out, given)
        if by_default is None or any(by_default[key] is None for key in keys):
            continue
        for key in dict.fromkeys([*sorted(transformers_keys(raw["model_type"])), *row_keys]):
            if is_irrelevant(key) or key in given:
                continue
            seen = [by_default]
            for value in _values(raw.get(key)):
                change = {**switched_on(raw, key), key: value}
                computed = _lists(left_out | change, given)
                if computed is not None and computed not in seen:
                    seen.append(computed)
                    found.setdefault(key, []).append({**dict.fromkeys(keys), **change})
    return found


def _lists(raw: Raw, keys: Mapping[str, list[Any]]) -> dict[str, list[Any]] | None:
    """The values of `keys` in transformers' configuration; None if it refuses it, or has another number of blocks."""
    try:
        config = reference.hf_config(raw).to_dict()
    except Exception:  # transformers raises anything for values that it cannot use
        return None
    found: dict[str, Any] = {key: config.get(key) for key in keys}
    n_layers = {len(value) for value in (*found.values(), *keys.values()) if isinstance(value, list)}
    return found if len(n_layers) == 1 else None


def _values(value: Any) -> tuple[Any, ...]:
    if isinstance(value, bool):
        return (not value,)
    if isinstance(value, int):
        return 1, 2, 3, value + 1
    if isinstance(value, list):
        return [0], [1]
    return (1, 2, 3, [0], [1], True) if value is None else ()
