"""Metadata of a `NamedArray`: immutable, made of JSON's types, validated. Imports no torch.

`seqlens` gives, for each field, the lengths along dim 0 of each sample's sequences.
Two samples, the second with two sequences of `input_ids`, and one score for each sequence:

    {"input_ids": ((5,), (3, 2)), "scores": ((1,), (1, 1))}

`ids` names the samples; `groups` gives, for units of samples, the index of the sample that each was cut from (see
`batching.split_groups`), and `columns` a mapping of what else a sample's row says. Any other item belongs to the batch
as a whole.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from reallm.errors import DataError, with_article

Metadata = Mapping[str, Any]
SeqLens = Mapping[str, tuple[tuple[int, ...], ...]]

PER_SAMPLE = ("seqlens", "ids", "groups", "columns")
"""Items with one entry for each sample, which are gathered, selected and split with the samples."""
_SCALARS = (str, int, float, bool, type(None))
_KINDS = {"ids": (str, "string"), "groups": (int, "integer"), "columns": (Mapping, "mapping")}


def freeze_metadata(metadata: Metadata) -> Metadata:
    """An immutable copy: read-only mappings, tuples, Python scalars instead of numpy's; items of None are dropped.

    Raises:
        DataError: a value is not made of JSON's types, or an item of `PER_SAMPLE` is malformed; names the item.
    """
    frozen: dict[str, Any] = {}
    for name, value in metadata.items():
        if value is None:
            continue
        if name == "seqlens":
            value = _freeze_seqlens(value)
            if not value:  # empty is the same as absent
                continue
        frozen[name] = _freeze(value, f"metadata '{name}'")
    for name, (kind, what) in _KINDS.items():
        if name in frozen and not (isinstance(frozen[name], tuple) and all(isinstance(x, kind) for x in frozen[name])):
            raise DataError(f"metadata '{name}' must be one {what} for each sample, not {frozen[name]!r}")
    return MappingProxyType(frozen)


def thaw(value: Any) -> Any:
    """A frozen value as plain dicts and lists, which `json.dumps` and `pickle` accept."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    return [thaw(item) for item in value] if isinstance(value, tuple) else value


def sample_count(metadata: Metadata) -> int | None:
    """Number of samples that the metadata describes; None if it has no item of `PER_SAMPLE`.

    Raises:
        DataError: two items, or two fields of `seqlens`, disagree; names both.
    """
    counts = {f"seqlens of '{key}'": len(samples) for key, samples in metadata.get("seqlens", {}).items()}
    counts |= {item: len(metadata[item]) for item in PER_SAMPLE[1:] if item in metadata}
    for name, count in counts.items():
        first, expected = next(iter(counts.items()))
        if count != expected:
            raise DataError(f"{name}: {count} samples, but {first}: {expected}")
    return next(iter(counts.values()), None)


def _freeze(value: Any, where: str) -> Any:
    if type(value) in _SCALARS:
        return value
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise DataError(f"{where}: key {key!r} is {with_article(type(key).__name__)}, not a str")
        return MappingProxyType({key: _freeze(item, f"{where}['{key}']") for key, item in value.items()})
    if isinstance(value, list | tuple):
        return tuple(_freeze(item, where) for item in value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | bool | int | float):
        return value
    raise DataError(
        f"{where} holds {with_article(type(value).__name__)}; metadata is made of str, int, float, bool, None, list "
        "and dict (an array belongs in a field)"
    )


def _freeze_seqlens(seqlens: Any) -> dict[str, tuple[tuple[int, ...], ...]]:
    if not isinstance(seqlens, Mapping):
        raise DataError(f"seqlens must be a mapping from field to lengths, not {with_article(type(seqlens).__name__)}")
    frozen = {}
    for key, samples in seqlens.items():
        try:
            frozen[key] = tuple(tuple(map(operator.index, sample)) for sample in samples)
        except TypeError:
            raise DataError(
                f"seqlens of '{key}' must hold, for each sample, the lengths of its sequences,"
                f" as in ((5,), (3, 2)); found {samples!r}"
            ) from None
        if any(length < 0 for sample in frozen[key] for length in sample):
            raise DataError(f"seqlens of '{key}' holds a negative length")
    return frozen
