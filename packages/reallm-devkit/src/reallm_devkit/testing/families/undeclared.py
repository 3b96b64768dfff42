"""Rows with a key that transformers' class does not have, and does not listen to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from reallm.errors import ReallmError
from reallm.hf.tables.fields import FieldRow
from reallm_devkit.testing.checks import CheckFailed
from reallm_devkit.testing.families import reference
from reallm_devkit.testing.families.behaviour import LENGTHS, behaviour_of
from reallm_devkit.testing.families.subject import FamilySubject
from reallm_devkit.testing.families.values import changes

WITHOUT_BEHAVIOUR = frozenset({"init_std", "max_positions"})
"""Fields on which nothing that is loaded and run depends: no value shows whether transformers listens."""

SIZES = frozenset({"vocab_size", "hidden_size", "intermediate_size", "n_layers", "n_kv_heads", "head_dim"})
"""Fields that shapes of parameters depend on."""

ARGUMENTS = {"head_dim": "head_dim_key", "n_kv_heads": "n_kv_heads_key"}
"""Fields whose row `decoder_rows` leaves out where this argument is None."""


def check_keys(subject: FamilySubject) -> None:
    """A key that transformers' class does not declare must have an effect all the same, as some are read if there.

    Raises:
        CheckFailed: a row states such a key, and whatever its value, the model of transformers is the same.
    """
    config = reference.hf_config({"model_type": subject.raw["model_type"]})
    declared = set(config.to_dict()) | set(config.attribute_map) | set(config.attribute_map.values())
    if dataclasses.is_dataclass(config):
        declared |= {item.name for item in dataclasses.fields(config)}
    for row in subject.lines.rows():
        suspected = row.keys and not declared & set(row.keys) and not WITHOUT_BEHAVIOUR & set(row.fields)
        if suspected and not _has_effect(subject, row):
            name, cls = row.keys[0], type(config).__name__
            same = "shapes" if SIZES & set(row.fields) else "results"
            argument = next((ARGUMENTS[field] for field in row.fields if field in ARGUMENTS), "")
            remedy = f"decoder_rows({argument}=None)" if argument else f'without(rows, "{name}")'
            raise CheckFailed(
                f"rows with keys that {cls} has: take this one out, {remedy}",
                f"it has no '{name}': whatever that is, {subject.architecture} has the same {same}",
                f"key '{name}' of config.json",
                subject.lines.row(row),
            )


def _has_effect(subject: FamilySubject, row: FieldRow) -> bool:
    """Whether a key changes the model of transformers; also if there is no recording."""
    samples = reference.sequences(subject.config.vocab_size, LENGTHS)
    shapes, before = _shapes(subject.theirs), behaviour_of(subject.theirs, samples)
    tried = False
    for raw in _others(subject, row):
        try:
            theirs = reference.hf_model(raw)
        except Exception:  # transformers refuses it; another value may tell more
            continue
        tried = True
        if _shapes(theirs) != shapes:
            return True
        if SIZES & set(row.fields):  # shapes alone count: RoPE may read a head_dim that the projections do not
            continue
        try:
            after = behaviour_of(theirs, samples)
        except Exception:  # it does not compute, and would without the key
            return True
        if not (after.is_like(before) and after.trains_like(before)):
            return True
    return not tried


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _others(subject: FamilySubject, row: FieldRow) -> Iterator[dict[str, Any]]:
    """The configuration with other values of a row's key."""
    key = row.keys[0]
    try:
        raw = {**subject.raw, key: row.write(subject.config, {}).get(key)}
    except (ReallmError, AttributeError):  # a row within another, of what is not there
        return
    yield from ({**raw, **change} for change in changes(raw, key, None) if change[key] is not None)
