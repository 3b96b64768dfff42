"""Other kinds of RoPE, written on files in the present and in the older spelling."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from reallm.errors import ConfigError
from reallm.hf.conversion.config import config_to_hf
from reallm.model.config import RopeConfig
from reallm_devkit.testing.families import reference
from reallm_devkit.testing.families.same_config import check_same, check_transformers, read_again
from reallm_devkit.testing.families.subject import FamilySubject

THETA = 300.0
FACTOR = 2.0


def check_ropes(subject: FamilySubject) -> int:
    """A changed RoPE is the same after writing and reading, to transformers, too; how many kinds the family states.

    Raises:
        CheckFailed: it is not.
    """
    n_ropes = 0
    for rope in _ropes(subject.config.rope):
        config = subject.config.replace(rope=rope)
        try:
            whole = config_to_hf(subject.family, config)
        except ConfigError:  # the family has no such kind, and says so
            continue
        if _theirs(whole) is None:
            continue
        n_ropes += 1
        for base, spelling in ((subject.raw, "rope_parameters"), (older(subject), "rope_theta and rope_scaling")):
            if base is None:
                continue
            where = f"rope_type={rope.kind} with rope_theta={rope.theta:g} written on a file that has {spelling}"
            written = config_to_hf(subject.family, config, base)
            check_same(subject, config, read_again(subject, written, where), where)
            check_transformers(subject, whole, written, where)
    return n_ropes


def older(subject: FamilySubject) -> Mapping[str, Any] | None:
    """The configuration in the older spelling; None if the family or transformers' class does not read that."""
    parameters = subject.raw.get("rope_parameters")
    row = next((row for row in subject.family.config.rows if "rope" in row.fields), None)
    if row is None or "rope_scaling" not in row.keys or not isinstance(parameters, Mapping):
        return None
    scaling = {key: value for key, value in parameters.items() if key != "rope_theta"}
    theta_key = getattr(row, "theta_key", "rope_theta")
    raw = {key: value for key, value in subject.raw.items() if key not in row.keys}
    raw |= {theta_key: parameters.get("rope_theta"), "rope_scaling": scaling}
    return raw if _theirs(raw) == _theirs(subject.raw) else None


def _theirs(raw: Mapping[str, Any]) -> Any:
    """The RoPE that transformers reads; None if it refuses the file, as its class does with some kinds."""
    try:
        return reference.hf_config(raw).to_dict().get("rope_parameters")
    except Exception:  # each of its versions raises another
        return None


def _ropes(rope: Any) -> Iterator[RopeConfig]:
    """Other kinds for all blocks alike, which rotate the same dims."""
    if not isinstance(rope, RopeConfig):
        return
    yield dataclasses.replace(rope, theta=THETA)
    plain = RopeConfig(theta=THETA, rotary_dim=rope.rotary_dim, interleaved=rope.interleaved)
    for other in (plain, dataclasses.replace(plain, kind="linear", factor=FACTOR)):
        if other.kind != rope.kind:
            yield other
