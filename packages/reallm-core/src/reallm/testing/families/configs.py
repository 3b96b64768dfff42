"""Checks of the config table: configurations there and back, and what keys mean that are not there."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from reallm.errors import ConfigError, ReallmError
from reallm.hf import config_io
from reallm.hf.keys import is_irrelevant
from reallm.model.config import ReaLModelConfig
from reallm.testing.checks import CheckFailed, check
from reallm.testing.families import reference
from reallm.testing.families.subject import FamilySubject

CHANGES: Mapping[str, tuple[Any, ...]] = {
    "n_kv_heads": (1, 4), "intermediate_size": (40,), "vocab_size": (89,), "max_positions": (48,), "norm_eps": (0.003,),
    "init_std": (0.03,), "attn_dropout": (0.25,), "residual_dropout": (0.25,), "embedding_dropout": (0.25,),
    "embedding_multiplier": (3.0,), "residual_multiplier": (0.5,), "logit_multiplier": (0.5,), "attn_softcap": (20.0,),
    "logit_softcap": (15.0,), "attn_scale": (0.3,), "qkv_clip": (2.0,), "sliding_window": (3,),
}  # fmt: skip
"""Fields with other values, which are written and read again wherever the table can state them."""

ROUNDING = 1e-9
"""Relative, of a number that a row computes from another and back."""
SAME = 1e-5
"""Difference of logits of order one that two spellings of one activation may make."""


@check()
def default_config(subject: FamilySubject) -> str:
    """the table reads what transformers writes by default, and states small sizes of the same kind"""
    try:
        config = subject.config
    except ReallmError as error:
        expected = f"a table that reads the configuration '{subject.case}'"
        raise CheckFailed(expected, str(error), look_at=_named(subject, str(error))) from error
    if reference.hf_class(subject.architecture) is None:
        raise CheckFailed(
            "a model class of transformers, to compare with", f"architecture '{subject.architecture}'",
            look_at=subject.table,
        )  # fmt: skip
    try:
        subject.theirs  # noqa: B018 - it is made here, and kept
    except Exception as error:  # of transformers, about sizes that do not go together
        expected = f"a configuration '{subject.case}' that {subject.architecture} takes"
        raise CheckFailed(expected, f"{type(error).__name__}: {error}", look_at="configs of the kit") from error
    sizes = f"{config.n_layers} blocks, hidden {config.hidden_size}, heads {config.n_q_heads}/{config.n_kv_heads}"
    return f"{sizes} of {config.head_dim}, {'tied' if config.tied_embeddings else 'untied'}"


@check(needs=[default_config])
def config_round_trip(subject: FamilySubject) -> str:
    """a configuration is the same after it was written and read, for us and for transformers"""
    family, config = subject.family, subject.config
    for base, how in ((subject.raw, "on the file it came from"), (None, "as a new file")):
        written = _written(subject, config, base, how)
        _check_same(subject, config, config_io.from_hf(family, written), f"written {how}")
        _check_transformers(subject, written, how)
    n_changes = 0
    for changed in _changed(config):
        for base in (subject.raw, None):
            try:
                written = config_io.to_hf(family, changed, base)
            except ConfigError:  # the family has no such thing, and says so
                continue
            fields = [item.name for item in dataclasses.fields(config)]
            (field,) = (name for name in fields if getattr(changed, name) != getattr(config, name))
            where = f"{field}={getattr(changed, field)!r}"
            _check_same(subject, changed, _read(subject, written, where), where)
            n_changes += base is None
    return f"on its file and as a new one, and with {n_changes} fields changed"


@check(needs=[default_config])
def defaults(subject: FamilySubject) -> str:
    """a key that `config.json` does not have means what transformers takes it to mean"""
    keys = [key for key in subject.raw if not is_irrelevant(key)]
    count = 0
    for absent in [[key] for key in keys] + [keys]:
        raw = {key: value for key, value in subject.raw.items() if key not in absent}
        try:
            full = {**reference.hf_config(raw).to_dict(), "architectures": raw["architectures"]}
            expected = config_io.from_hf(subject.family, full)
        except Exception:  # transformers does without this key no better: whatever it raises
            continue
        try:
            found = config_io.from_hf(subject.family, raw)
        except ReallmError as error:
            if any(key in str(error) for key in absent):
                continue  # refused by name
            what = f"the key '{absent[0]}'" if len(absent) == 1 else "any key"
            raise CheckFailed(
                f"a configuration without {what}, or an error that names what is missing",
                str(error),
                look_at=subject.lines.key(absent[0]),
            ) from error
        count += 1
        for item in dataclasses.fields(expected):
            theirs, ours = getattr(expected, item.name), getattr(found, item.name)
            if theirs != ours:
                what = f"without the key '{absent[0]}'" if len(absent) == 1 else "without any key"
                one, other = _differing(item.name, theirs, ours)
                look_at = subject.lines.field(item.name) or subject.lines.config()
                raise CheckFailed(f"{one}, as transformers has it", other, f"a config.json {what}", look_at)
    return f"{count} configurations with keys left out"


def _read(subject: FamilySubject, written: Mapping[str, Any], where: str) -> ReaLModelConfig:
    try:
        return config_io.from_hf(subject.family, written)
    except ReallmError as error:
        expected = "a table that reads what it has written"
        raise CheckFailed(expected, str(error), where, _named(subject, str(error))) from error


def _written(
    subject: FamilySubject, config: ReaLModelConfig, base: Mapping[str, Any] | None, how: str
) -> Mapping[str, Any]:
    try:
        return config_io.to_hf(subject.family, config, base)
    except ConfigError as error:
        expected = "a table that states what it has read"
        raise CheckFailed(expected, str(error), f"written {how}", _named(subject, str(error))) from error


def _check_same(subject: FamilySubject, config: ReaLModelConfig, again: ReaLModelConfig, where: str) -> None:
    for item in dataclasses.fields(config):
        one, other = getattr(config, item.name), getattr(again, item.name)
        rounded = isinstance(one, float) and isinstance(other, float) and math.isclose(one, other, rel_tol=ROUNDING)
        if one != other and not rounded:
            look_at = subject.lines.field(item.name) or subject.lines.config()
            before, after = _differing(item.name, one, other)
            raise CheckFailed(f"{before} after writing and reading", after, where, look_at)


def _check_transformers(subject: FamilySubject, written: Mapping[str, Any], how: str) -> None:
    """What is written is the same to transformers: an equal configuration, or one that computes the same."""
    try:
        theirs, again = (reference.hf_config(raw).to_dict() for raw in (subject.raw, written))
        different = [
            key
            for key in theirs.keys() | again.keys()
            if not is_irrelevant(key)
            and key not in subject.family.config.irrelevant
            and theirs.get(key) != again.get(key)
        ]
        if not different:
            return
        expected, found = (_a_few_logits(raw) for raw in (subject.raw, written))
    except Exception as error:  # of transformers, about a file that we wrote
        seen = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise CheckFailed("a file that transformers reads", seen, f"written {how}", subject.lines.config()) from error
    if not torch.allclose(expected, found, atol=SAME):
        key = sorted(different)[0]
        raise CheckFailed(
            f"a file that means the same to transformers: {key}={theirs.get(key)!r}",
            f"{key}={again.get(key)!r}",
            f"written {how}",
            subject.lines.key(key),
        )


@torch.no_grad()
def _a_few_logits(raw: Mapping[str, Any]) -> torch.Tensor:
    return reference.logits_of(reference.hf_model(raw), reference.sequences(int(raw["vocab_size"]), (40,)))


def _changed(config: ReaLModelConfig) -> Iterator[ReaLModelConfig]:
    for field, values in CHANGES.items():
        for value in values:
            before = getattr(config, field)
            if isinstance(before, tuple):
                value = tuple(None if one is None else value for one in before)
            if before is None or value == before:  # turning things on is for the check of fields
                continue
            try:
                yield config.replace(**{field: value})
            except ConfigError:
                continue


def _differing(name: str, one: Any, other: Any) -> tuple[str, str]:
    """Two values of a field as a report shows them: of RoPE or experts only what differs."""
    if type(one) is type(other) and dataclasses.is_dataclass(one):
        parts = [item.name for item in dataclasses.fields(one)]
        parts = [part for part in parts if getattr(one, part) != getattr(other, part)]
        shown = [", ".join(f"{name}.{part}={getattr(value, part)!r}" for part in parts) for value in (one, other)]
        return shown[0], shown[1]
    return f"{name}={one!r}", f"{name}={other!r}"


def _named(subject: FamilySubject, text: str) -> str:
    """The row of the first key or field that a message names; else the table."""
    for row in subject.family.config.rows:
        if any(f"{name}=" in text or f"'{name}'" in text for name in (*row.keys, *row.fields)):
            return subject.lines.row(row)
    return subject.lines.config()
