"""The check that no field of a family's configuration is silently ignored.

Each field of transformers' configuration class gets other values. If transformers then computes something else, our
model must compute the same, or the table must refuse the value by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reallm.errors import CheckpointError, ReallmError
from reallm.hf.conversion.config import config_from_hf
from reallm.hf.conversion.transformers_io import checkpoint_state
from reallm.hf.tables.ignored_keys import is_irrelevant
from reallm.model.config import ReaLModelConfig
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.families import reference
from reallm_devkit.testing.families.behaviour import LENGTHS, Behaviour, behaviour_of
from reallm_devkit.testing.families.closeness import LOGITS_TOLERANCE, is_close, max_difference
from reallm_devkit.testing.families.numerics import logits
from reallm_devkit.testing.families.patterns import pattern_changes
from reallm_devkit.testing.families.subject import FamilySubject, load_network, run_packed
from reallm_devkit.testing.families.values import changes


class UnnamedRefusal(CheckFailed):
    """A value is refused by an error that does not name its key."""


@check(needs=[logits])
def config_fields(subject: FamilySubject) -> str:
    """every field of transformers' configuration is honoured, or refused by name"""
    if subject.twin:
        raise Skipped(f"tried with '{subject.twin}', from which it differs in the head alone")
    samples = reference.sequences(subject.config.vocab_size, LENGTHS)
    before = behaviour_of(subject.hf_model, samples)
    positions_key = _key_of(subject, "max_positions")
    row_keys = [key for row in subject.lines.rows() for key in row.keys]
    patterns = pattern_changes(subject.raw, row_keys) if subject.is_first else {}
    counts = {"honoured": 0, "refused": 0, "without effect": 0}
    for raw, key in _fields(subject, patterns):
        outcomes: list[str] = []
        unnamed: list[CheckFailed] = []
        for change in (*changes(raw, key, positions_key), *patterns.get(key, ())):
            try:
                outcomes.append(_try_value(subject, key, {**raw, **change}, samples, before))
            except UnnamedRefusal as failure:
                unnamed.append(failure)
        if unnamed and "honoured" not in outcomes:  # otherwise it is refused for a consequence, as odd sizes are
            raise unnamed[0]
        for outcome in filter(None, outcomes):
            counts[outcome] += 1
    return ", ".join(f"{count} values {what}" for what, count in counts.items() if count)


def _fields(subject: FamilySubject, others: Iterable[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each key or field of transformers' configuration class that may have an effect, and `others`, with a config.

    Yields (config, key). A key that is a synonym of one in the config replaces it there.
    """
    config = reference.hf_config(subject.raw)
    declared = [item.name for item in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    keys = [*subject.raw, *config.to_dict(), *declared, *others]
    if "rope_parameters" in keys:
        keys.append("rope_scaling")
    synonyms = {**config.attribute_map, **{real: alias for alias, real in config.attribute_map.items()}}
    for key in dict.fromkeys(keys):
        if is_irrelevant(key):
            continue
        raw, other = dict(subject.raw), synonyms.get(key)
        if key not in raw and other in raw:
            raw[key] = raw.pop(other)
        yield raw, key


def _try_value(
    subject: FamilySubject, key: str, raw: Mapping[str, Any], samples: list[Tensor], before: Behaviour
) -> str:
    """`honoured`, `refused` or `without effect`, for another value of a key; empty if transformers refuses it.

    Raises:
        UnnamedRefusal: our table refuses it without naming the key.
        CheckFailed: it is ignored, or our model computes something else than transformers.
    """
    try:
        theirs = reference.hf_model(raw)
        after = behaviour_of(theirs, samples)
    except Exception:  # transformers raises anything for values that it cannot use
        return ""
    has_effect, trains_otherwise = not after.is_like(before), not after.trains_like(before)
    setting = f"{key}={_shorten(raw[key])}"
    try:
        config = config_from_hf(subject.family, raw)
    except CheckpointError as error:
        if has_effect and not _mentions(subject, key, str(error)):
            expected = f"an error about {setting} that names '{key}'"
            raise UnnamedRefusal(expected, str(error), look_at=subject.lines.key(key)) from error
        return "refused"
    if config == subject.config:
        if has_effect or trains_otherwise:
            _fail_ignored(subject, key, setting, before, after)
        return "without effect"
    _check_agrees(subject, key, setting, theirs, config, samples, after)
    return "honoured"


def _fail_ignored(subject: FamilySubject, key: str, setting: str, before: Behaviour, after: Behaviour) -> None:
    if before.is_like(after):
        effect = "training in transformers"
    elif before.logits.shape == after.logits.shape:
        effect = f"logits of transformers, by up to {(before.logits - after.logits).abs().max():.2g}"
    else:
        effect = "the shape of transformers' logits"
    raise CheckFailed(
        f"{setting} is honoured, or refused by name: it changes {effect}",
        "it is silently ignored: our configuration is the same as without it",
        f"key '{key}' of config.json",
        subject.lines.key(key),
    )


def _check_agrees(
    subject: FamilySubject,
    key: str,
    setting: str,
    theirs: nn.Module,
    config: ReaLModelConfig,
    samples: list[Tensor],
    after: Behaviour,
) -> None:
    try:
        ours = load_network(subject.family, config, checkpoint_state(theirs))  # type: ignore[arg-type]
    except ReallmError as error:
        expected = f"a network for {setting}, or an error about the configuration that names it"
        raise CheckFailed(expected, str(error), f"key '{key}' of config.json", subject.lines.key(key)) from error
    with torch.no_grad():
        found = run_packed(ours.eval(), *reference.pack(samples))
    if found.shape != after.logits.shape:
        seen = f"logits of shape {list(found.shape)}"
        raise CheckFailed(f"{list(after.logits.shape)} for {setting}", seen, look_at=subject.lines.key(key))
    if not is_close(found, after.logits):
        difference, _, _ = max_difference(found, after.logits)
        fields = [item.name for item in dataclasses.fields(config)]
        other = [name for name in fields if getattr(config, name) != getattr(subject.config, name)]
        raise CheckFailed(
            f"with {setting}, logits of {subject.architecture} within {LOGITS_TOLERANCE:.0e}",
            f"they differ by up to {difference:.2g}; it became "
            + ", ".join(f"{name}={_shorten(getattr(config, name))}" for name in other),
            f"key '{key}' of config.json",
            subject.lines.key(key),
        )


def _key_of(subject: FamilySubject, field: str) -> str | None:
    """The key of `config.json` that states a field."""
    return next((row.keys[0] for row in subject.family.config.rows if field in row.fields and row.keys), None)


def _mentions(subject: FamilySubject, key: str, text: str) -> bool:
    """Whether an error message names a key, or the field that its row states."""
    rows = [row for row in subject.family.config.rows if key in row.keys]
    return any(name in text for name in (key, *(name for row in rows for name in (*row.keys, *row.fields))))


def _shorten(value: Any) -> str:
    if isinstance(value, Mapping):
        value = dict(value)
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
