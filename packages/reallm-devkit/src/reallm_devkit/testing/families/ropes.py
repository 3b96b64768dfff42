"""Round trips of other kinds of RoPE, in files with the present and with the older spelling."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from reallm.errors import ConfigError
from reallm.hf.conversion.config import config_to_hf
from reallm.hf.tables.blocks import InBlocks
from reallm.model.config import RopeConfig
from reallm_devkit.testing.families import reference
from reallm_devkit.testing.families.same_config import check_same, check_transformers, read_again
from reallm_devkit.testing.families.subject import FamilySubject

THETA = 300.0
FACTOR = 2.0


def check_ropes(subject: FamilySubject) -> int:
    """Check that other kinds of RoPE survive writing and reading, for us and for transformers; returns how many.

    Raises:
        CheckFailed: one does not.
    """
    n_ropes = 0
    for rope in _ropes(subject.config.rope):
        config = subject.config.replace(rope=rope)
        kind = config.distinct_ropes[0]
        try:
            fresh = config_to_hf(subject.family, config)
        except ConfigError:  # the family refuses this kind
            continue
        if _hf_rope(fresh) is None:
            continue
        n_ropes += 1
        for base, spelling in (
            (subject.raw, "rope_parameters"),
            (legacy_spelling(subject), "rope_theta and rope_scaling"),
        ):
            if base is None:
                continue
            where = f"rope_type={kind.kind} with rope_theta={kind.theta:g} written on a file that has {spelling}"
            written = config_to_hf(subject.family, config, base)
            check_same(subject, config, read_again(subject, written, where), where)
            check_transformers(subject, fresh, written, where)
    return n_ropes


def legacy_spelling(subject: FamilySubject) -> Mapping[str, Any] | None:
    """The configuration in the older spelling; None if the family or transformers' class does not read that."""
    parameters = subject.raw.get("rope_parameters")
    row = next((row for row in subject.family.config.rows if "rope" in row.fields), None)
    row = row.row if isinstance(row, InBlocks) else row
    if row is None or "rope_scaling" not in row.keys or not isinstance(parameters, Mapping):
        return None
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    theta_key = getattr(row, "theta_key", "rope_theta")
    raw = {key: value for key, value in subject.raw.items() if key not in row.keys}
    raw |= {theta_key: parameters.get("rope_theta"), "rope_scaling": scaling}
    return raw if _hf_rope(raw) == _hf_rope(subject.raw) else None


def _hf_rope(raw: Mapping[str, Any]) -> Any:
    """The RoPE parameters that transformers reads; None if it refuses the file."""
    try:
        return reference.hf_config(raw).to_dict().get("rope_parameters")
    except Exception:  # depends on the version of transformers
        return None


def _ropes(rope: Any) -> Iterator[Any]:
    """Other kinds of RoPE with the same rotary dim, in the same blocks; none for families with several in a model."""
    blocks = rope if isinstance(rope, tuple) else (rope,)
    present = set(blocks) - {None}
    if len(present) != 1:
        return
    for other in _others(present.pop()):
        each = tuple(None if one is None else other for one in blocks)
        yield each if isinstance(rope, tuple) else other


def _others(rope: RopeConfig) -> Iterator[RopeConfig]:
    yield dataclasses.replace(rope, theta=THETA)
    plain = RopeConfig(theta=THETA, rotary_dim=rope.rotary_dim, interleaved=rope.interleaved)
    for other in (plain, dataclasses.replace(plain, kind="linear", factor=FACTOR)):
        if other.kind != rope.kind:
            yield other
