"""RoPE in `config.json`, in both spellings, to and from `RopeConfig`. Imports no torch.

Since version 5 transformers writes `rope_parameters: {"rope_type": ..., "rope_theta": ..., ...}`; older files have
`rope_theta` and, for stretched contexts, `rope_scaling: {"type" or "rope_type": ..., ...}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from reallm.errors import ConfigError
from reallm.model.config import ReaLModelConfig, RopeConfig, RopeKind

_FIELDS = {
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
"""Parameters in `config.json` -> fields of `RopeConfig`."""

_WITHOUT_EFFECT = frozenset({"finetuned"})
_RELATIVE_TO_PRETRAINING = ("llama3", "yarn")


@dataclass(frozen=True)
class RopeRow:
    """The row of a `ConfigTable` for RoPE. It uses `max_positions`, whose row must come before."""

    default_theta: float = 10000.0

    @property
    def fields(self) -> tuple[str, ...]:
        """The one field."""
        return ("rope",)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of both spellings."""
        return ("rope_parameters", "rope_theta", "rope_scaling")

    def read(self, raw: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
        """`{"rope": RopeConfig}`; see `Row.read`."""
        # transformers prefers `rope_scaling` where a file has both.
        key = "rope_scaling" if raw.get("rope_scaling") else "rope_parameters"
        parameters = dict(raw.get(key) or {})
        theta = parameters.pop("rope_theta", None)
        if theta is None:
            theta = raw.get("rope_theta")
        old_kind = parameters.pop("type", None)
        kind = parameters.pop("rope_type", None) or old_kind or "default"
        if kind not in get_args(RopeKind):
            raise ConfigError(f"{key} has rope_type={kind!r}; supported are {', '.join(get_args(RopeKind))}")
        if parameters.pop("partial_rotary_factor", None) not in (None, 1):
            raise ConfigError(f"{key} has partial_rotary_factor; rotating a part of each head is not supported")
        fields: dict[str, Any] = {}
        for name, value in parameters.items():
            if name in _FIELDS:
                fields[_FIELDS[name]] = _number(f"{key}.{name}", value)
            elif name not in _WITHOUT_EFFECT and value is not None:
                raise ConfigError(f"{key} has an unsupported parameter {name}={value!r} for rope_type='{kind}'")
        if kind in _RELATIVE_TO_PRETRAINING and fields.get("original_max_positions") is None:
            fields["original_max_positions"] = known["max_positions"]
        if kind == "yarn" and fields.get("factor") is None:
            fields["factor"] = known["max_positions"] / fields["original_max_positions"]
        if theta is None:
            theta = self.default_theta
        return {"rope": RopeConfig(kind=cast(RopeKind, kind), theta=_number("rope_theta", theta), **fields)}

    def write(self, config: ReaLModelConfig, base: Mapping[str, Any]) -> dict[str, Any]:
        """RoPE in the spelling of `base`, or the newer one; see `Row.write`."""
        rope = config.rope
        values = {name: getattr(rope, field) for name, field in _FIELDS.items()}
        parameters = {name: value for name, value in values.items() if value is not None}
        old_spelling = base.get("rope_parameters") is None and ("rope_theta" in base or "rope_scaling" in base)
        if not old_spelling:
            return {"rope_parameters": {"rope_type": rope.kind, "rope_theta": rope.theta, **parameters}}
        if rope.kind == "default":
            return {"rope_theta": rope.theta, "rope_scaling": None}
        kind_key = "type" if "type" in (base.get("rope_scaling") or {}) else "rope_type"
        return {"rope_theta": rope.theta, "rope_scaling": {kind_key: rope.kind, **parameters}}


def _number(name: str, value: Any) -> Any:
    """`value` if it is a number, a truth value or null."""
    if value is not None and not isinstance(value, (int, float)):
        raise ConfigError(f"{name}={value!r} must be a number")
    return value
