"""Finds rows with a key that transformers' configuration class neither declares nor reads."""

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
"""Fields without effect on a loaded model, so that no value shows whether transformers reads the key."""

SIZES = frozenset({"vocab_size", "hidden_size", "intermediate_size", "n_layers", "n_kv_heads", "head_dim"})
"""Fields that determine shapes of parameters."""

ARGUMENTS = {"head_dim": "head_dim_key", "n_kv_heads": "n_kv_heads_key"}
"""Field -> the argument of `decoder_rows` that leaves out its row if it is None."""


def check_keys(subject: FamilySubject) -> None:
    """Check that keys of rows which transformers' class does not declare have an effect: it reads some of those, too.

    Raises:
        CheckFailed: a row has such a key, and no value of it changes the transformers model.
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
    """Whether the key of a row changes the transformers model; True if no other value can be tried."""
    samples = reference.sequences(subject.config.vocab_size, LENGTHS)
    shapes, before = _shapes(subject.hf_model), behaviour_of(subject.hf_model, samples)
    tried = False
    for raw in _others(subject, row):
        try:
            theirs = reference.hf_model(raw)
        except Exception:  # refused by transformers; another value may not be
            continue
        tried = True
        if _shapes(theirs) != shapes:
            return True
        if SIZES & set(row.fields):  # only shapes count: RoPE may read a head_dim that the projections do not
            continue
        try:
            after = behaviour_of(theirs, samples)
        except Exception:  # the value breaks the model, so the key has an effect
            return True
        if not (after.is_like(before) and after.trains_like(before)):
            return True
    return not tried


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}


def _others(subject: FamilySubject, row: FieldRow) -> Iterator[dict[str, Any]]:
    """Yields the configuration with other values of a row's key."""
    key = row.keys[0]
    try:
        raw = {**subject.raw, key: row.write(subject.config, {}).get(key)}
    except (ReallmError, AttributeError):  # a row of a nested table whose object is None
        return
    yield from ({**raw, **change} for change in changes(raw, key, None) if change[key] is not None)
