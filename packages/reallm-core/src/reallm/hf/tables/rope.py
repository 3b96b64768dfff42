"""Conversion of RoPE between `config.json`, in both of its spellings, and `RopeConfig`. Imports no torch.

Since version 5 transformers writes `rope_parameters: {"rope_type": ..., "rope_theta": ..., ...}`; older files have
`rope_theta` and, for stretched contexts, `rope_scaling: {"type" or "rope_type": ..., ...}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast, get_args

from reallm.errors import ConfigError
from reallm.foreign_files import is_finite_number, shown
from reallm.hf.tables.fields import AttributeMapping, FieldsSoFar
from reallm.model.config import RopeConfig, RopeKind

_NUMBERS = {
    "factor": "factor",
    "original_max_position_embeddings": "original_max_positions",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "attention_factor": "attention_factor",
    "truncate": "truncate",
}
_LISTS = ("short_factor", "long_factor")
"""Parameters in `config.json` -> fields of `RopeConfig`; lists have the same names."""

_WITHOUT_EFFECT = frozenset({"finetuned"})
_RELATIVE_TO_PRETRAINING = ("llama3", "yarn", "longrope")


@dataclass(frozen=True)
class RopeDialect:
    """A family's conventions for RoPE, which are not in the file.

    `interleaved`: dims `2d` and `2d + 1` form a pair. `partial`: the default fraction of each head that is rotated,
    which a key may change; None: there is no such key, and whole heads are rotated. `kinds`: further names of kinds,
    `{"su": "longrope"}`.
    """

    interleaved: bool = False
    partial: float | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)

    def read(self, parameters: Mapping[str, Any], where: str, theta: float, known: FieldsSoFar) -> RopeConfig:
        """The RoPE described by a `rope_parameters` or `rope_scaling`, with base `theta` if it has none."""
        rest = dict(parameters)
        stated = rest.pop("rope_theta", None)
        old_kind = rest.pop("type", None)
        spelled = rest.pop("rope_type", None) or old_kind or "default"
        kind = self.kinds.get(spelled, spelled) if isinstance(spelled, str) else spelled
        if kind not in get_args(RopeKind):
            raise ConfigError(
                f"{where} has {_kind_key(parameters)}={shown(spelled)}; supported are {', '.join(get_args(RopeKind))}"
            )
        fields: dict[str, Any] = {"rotary_dim": self._rotary_dim(rest.pop("partial_rotary_factor", None), where, known)}
        for name, value in rest.items():
            if name in _NUMBERS:
                fields[_NUMBERS[name]] = number(f"{where}.{name}", value)
            elif name in _LISTS and value is not None:
                if not isinstance(value, list | tuple):
                    raise ConfigError(f"{where}.{name}={shown(value)} must be a list of numbers")
                fields[name] = tuple(number(f"{where}.{name}", item) for item in value)
            elif name not in _WITHOUT_EFFECT and value is not None:
                of_kind = f"{_kind_key(parameters)}='{spelled}'"
                raise ConfigError(f"{where} has an unsupported parameter {name}={shown(value)} for {of_kind}")
        if kind in _RELATIVE_TO_PRETRAINING and fields.get("original_max_positions") is None:
            fields["original_max_positions"] = known["max_positions"]
        if kind == "yarn" and fields.get("factor") is None:
            fields["factor"] = known["max_positions"] / fields["original_max_positions"]
        if kind == "default":
            fields.pop("original_max_positions", None)  # some files have it without using it
        return RopeConfig(
            kind=cast(RopeKind, kind),
            theta=number("rope_theta", theta if stated is None else stated),
            interleaved=self.interleaved,
            **fields,
        )

    def write(self, rope: RopeConfig, head_dim: int) -> dict[str, Any]:
        """The `rope_parameters` of a RoPE, without kind and theta."""
        if rope.interleaved != self.interleaved:
            raise ConfigError(f"rope.interleaved={rope.interleaved} cannot be expressed; it must be {self.interleaved}")
        values = {name: getattr(rope, attribute) for name, attribute in _NUMBERS.items()}
        values |= {name: list(getattr(rope, name)) for name in _LISTS if getattr(rope, name) is not None}
        if self.partial is not None:
            values["partial_rotary_factor"] = _fraction(rope.rotary_dim or head_dim, head_dim)
        elif rope.rotary_dim not in (None, head_dim):
            raise ConfigError(f"rope.rotary_dim={rope.rotary_dim} cannot be expressed; it must be head_dim={head_dim}")
        return {name: value for name, value in values.items() if value is not None}

    def _rotary_dim(self, fraction: Any, where: str, known: FieldsSoFar) -> int | None:
        if fraction is None:
            fraction = 1.0 if self.partial is None else self.partial
        elif self.partial is None and fraction != 1:
            raise ConfigError(f"{where} has partial_rotary_factor={shown(fraction)}; this family rotates whole heads")
        n_dims = int(known["head_dim"] * number("partial_rotary_factor", fraction))
        return None if n_dims == known["head_dim"] else n_dims


@dataclass(frozen=True)
class RopeRow:
    """The row of a `ConfigTable` for RoPE, the same in all blocks.

    The row needs `max_positions` and `head_dim`, whose rows must come before it. `default_theta` is the theta of a file
    that has none. `theta_key` and `partial_key` are keys that older files have instead of `rope_parameters`.
    `rotary_dim` computes the number of rotated dims from the fields of earlier rows, where it is not `head_dim` or a
    part of it that a key states. `interleaved_key` is a boolean key for `interleaved`, which is then its default.
    `original_key` is a separate key for the context length of pretraining. `absent` is the RoPE of a file with neither
    `rope_parameters` nor `rope_scaling`, if that is not plain RoPE with the theta of `theta_key`. For the other
    arguments see `RopeDialect`.
    """

    default_theta: float = 10000.0
    interleaved: bool = False
    partial: float | None = None
    kinds: Mapping[str, str] = field(default_factory=dict)
    theta_key: str = "rope_theta"
    partial_key: str = "partial_rotary_factor"
    original_key: str | None = None
    absent: RopeConfig | None = None
    rotary_dim: Callable[[FieldsSoFar], int] | None = None
    interleaved_key: str | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """The one field."""
        return ("rope",)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of both spellings."""
        keys = ["rope_parameters", self.theta_key, "rope_scaling"]
        if self.partial is not None:
            keys.append(self.partial_key)
        keys += [key for key in (self.original_key, self.interleaved_key) if key is not None]
        return tuple(keys)

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """`{"rope": RopeConfig}`; see `FieldRow.read`."""
        if self.absent is not None and not (raw.get("rope_scaling") or raw.get("rope_parameters")):
            return {"rope": self.absent}
        # transformers prefers `rope_scaling` if a file has both.
        where = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
        stated = raw.get(where) or {}
        if not isinstance(stated, Mapping):
            raise ConfigError(
                f"{where}={shown(stated)} must be an object, such as {{'rope_type': 'linear', 'factor': 2.0}}"
            )
        parameters = dict(stated)
        if parameters.get("partial_rotary_factor") is None and self.partial is not None:
            parameters["partial_rotary_factor"] = raw.get(self.partial_key)
        if self.original_key is not None and raw.get(self.original_key) is not None:
            parameters["original_max_position_embeddings"] = raw[self.original_key]
        theta = raw.get(self.theta_key)
        theta = self.default_theta if theta is None else theta
        if self.rotary_dim is None:
            return {"rope": self._dialect(raw).read(parameters, where, theta, known)}
        size = self.rotary_dim(known)
        whole = {"head_dim": size, "max_positions": known["max_positions"]}
        return {"rope": replace(self._dialect(raw).read(parameters, where, theta, whole), rotary_dim=size)}

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """RoPE in the spelling of `base`, or the newer one; see `FieldRow.write`."""
        rope = config.rope
        if not isinstance(rope, RopeConfig):
            raise ConfigError(f"rope={rope!r} cannot be expressed; this family has one RoPE for all blocks")
        separate: dict[str, Any] = {}
        if self.interleaved_key is not None:
            separate[self.interleaved_key] = rope.interleaved
        whole = config.head_dim if self.rotary_dim is None else self.rotary_dim(AttributeMapping(config))
        parameters = self._dialect(separate).write(rope, whole)
        if self.original_key is not None and rope.original_max_positions is not None:
            separate[self.original_key] = rope.original_max_positions
        old_spelling = base.get("rope_parameters") is None and (self.theta_key in base or "rope_scaling" in base)
        if not old_spelling or (self.absent is not None and rope.kind == "default"):
            return {"rope_parameters": {"rope_type": rope.kind, "rope_theta": rope.theta, **parameters}, **separate}
        separate[self.theta_key] = rope.theta
        if self.partial is not None:
            separate[self.partial_key] = parameters.pop("partial_rotary_factor")
        if rope.kind == "default":
            return {**separate, "rope_scaling": None}
        kind_key = _kind_key(base.get("rope_scaling") or {})
        return {**separate, "rope_scaling": {kind_key: rope.kind, **parameters}}

    def keys_by_field(self, raw: Mapping[str, Any]) -> dict[str, str]:
        """See `fields.keys_by_field`; fields are named as in `rope.factor`."""
        found = rope_keys_by_field(raw)
        return found if raw.get("rope_parameters") else {**found, "rope.theta": self.theta_key}

    def _dialect(self, raw: Mapping[str, Any]) -> RopeDialect:
        stated = None if self.interleaved_key is None else raw.get(self.interleaved_key)
        return RopeDialect(self.interleaved if stated is None else bool(stated), self.partial, self.kinds)


def rope_keys_by_field(raw: Mapping[str, Any]) -> dict[str, str]:
    """Fields of `RopeConfig`, as in `rope.factor`, -> keys of a `config.json`, as in `rope_scaling.factor`."""
    where = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
    keys = {ours: theirs for theirs, ours in _NUMBERS.items()} | {name: name for name in _LISTS}
    keys |= {"kind": _kind_key(raw.get(where) or {}), "theta": "rope_theta", "rotary_dim": "partial_rotary_factor"}
    return {f"rope.{ours}": f"{where}.{theirs}" for ours, theirs in keys.items()}


def _kind_key(parameters: Mapping[str, Any]) -> str:
    return "type" if "type" in parameters and "rope_type" not in parameters else "rope_type"


def number(name: str, value: Any) -> Any:
    """`value`, if it is a finite number, a boolean or None.

    Raises:
        ConfigError: `value` is none of these.
    """
    if value is not None and not isinstance(value, bool) and not is_finite_number(value):
        raise ConfigError(f"{name}={shown(value)} must be a number of at most 64 bits")
    return value


def _fraction(part: int, whole: int) -> float:
    """The fraction for which `int(whole * fraction)` is `part`."""
    fraction = part / whole
    return fraction if int(whole * fraction) == part else math.nextafter(fraction, 1.0)
