"""Compares a configuration with itself after writing and reading, for us and for transformers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from reallm.errors import ReallmError, one_line
from reallm.hf.conversion.config import config_from_hf
from reallm.hf.tables.ignored_keys import is_irrelevant
from reallm.model.config import ReaLModelConfig
from reallm_devkit.testing.checks import CheckFailed
from reallm_devkit.testing.families import reference
from reallm_devkit.testing.families.subject import FamilySubject

ROUNDING = 1e-9
"""Relative difference of a number that a row converts and converts back."""
SPELLING_TOLERANCE = 1e-5
"""Largest difference of logits of order one between two spellings of the same activation."""


def read_again(subject: FamilySubject, written: Mapping[str, Any], where: str) -> ReaLModelConfig:
    """Read a config that the family's table has written."""
    try:
        return config_from_hf(subject.family, written)
    except ReallmError as error:
        expected = "a table that reads what it has written"
        raise CheckFailed(expected, str(error), where, subject.lines.mentioned_in(str(error))) from error


def check_same(subject: FamilySubject, config: ReaLModelConfig, again: ReaLModelConfig, where: str) -> None:
    """Raise CheckFailed for the first field that differs after writing and reading."""
    for item in dataclasses.fields(config):
        one, other = getattr(config, item.name), getattr(again, item.name)
        rounded = isinstance(one, float) and isinstance(other, float) and math.isclose(one, other, rel_tol=ROUNDING)
        if one != other and not rounded:
            look_at = subject.lines.field(item.name) or subject.lines.config()
            before, after = differing(item.name, one, other)
            raise CheckFailed(f"{before} after writing and reading", after, where, look_at)


def check_transformers(subject: FamilySubject, raw: Mapping[str, Any], written: Mapping[str, Any], where: str) -> None:
    """Check that transformers reads `written` as `raw`: to an equal configuration, or one that computes the same."""
    try:
        theirs, again = (reference.hf_config(raw).to_dict() for raw in (raw, written))
        different = [
            key
            for key in theirs.keys() | again.keys()
            if not is_irrelevant(key)
            and key not in subject.family.config.irrelevant
            and theirs.get(key) != again.get(key)
        ]
        if not different:
            return
        expected, found = (_sample_logits(raw) for raw in (raw, written))
    except Exception as error:  # from transformers, about a config that we wrote
        seen = f"{type(error).__name__}: {one_line(error)}"
        raise CheckFailed("a file that transformers reads", seen, where, subject.lines.config()) from error
    if not torch.allclose(expected, found, atol=SPELLING_TOLERANCE):
        key = sorted(different)[0]
        raise CheckFailed(
            f"a file that means the same to transformers: {key}={theirs.get(key)!r}",
            f"{key}={again.get(key)!r}",
            where,
            subject.lines.key(key),
        )


@torch.no_grad()
def _sample_logits(raw: Mapping[str, Any]) -> torch.Tensor:
    return reference.logits_of(reference.hf_model(raw), reference.sequences(int(raw["vocab_size"]), (40,)))


def differing(name: str, one: Any, other: Any) -> tuple[str, str]:
    """Two values of a field as text; of RoPE or experts only the attributes that differ."""
    if type(one) is type(other) and dataclasses.is_dataclass(one):
        parts = [item.name for item in dataclasses.fields(one)]
        parts = [part for part in parts if getattr(one, part) != getattr(other, part)]
        shown = [", ".join(f"{name}.{part}={getattr(value, part)!r}" for part in parts) for value in (one, other)]
        return shown[0], shown[1]
    return f"{name}={one!r}", f"{name}={other!r}"
