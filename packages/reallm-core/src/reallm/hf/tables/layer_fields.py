"""Rows for fields that differ between blocks: sliding windows, and RoPE for blocks with and without one.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reallm.errors import ConfigError
from reallm.foreign_files import shown
from reallm.hf.tables.fields import FieldsSoFar
from reallm.hf.tables.rope import RopeDialect, rope_keys_by_field
from reallm.model.config import RopeConfig

FULL, SLIDING = "full_attention", "sliding_attention"
"""transformers' names for blocks with full and with sliding-window attention."""


@dataclass(frozen=True)
class LayerTypes:
    """The row for `layer_types` and `sliding_window`, which determine the blocks with a sliding window.

    Args:
        default: the types if the file has none, from its content and the fields of earlier rows. transformers computes
            them from other keys: list these as `older_keys`.
        window: the window's size if the file has none.
        enabled_key: a boolean key without which no block has a window.
        older_keys: keys that only `default` reads.
        types_key: the key of the types; None: there is none, and the default types are used.
    """

    default: Callable[[Mapping[str, Any], FieldsSoFar], Sequence[str]]
    window: int | None = None
    enabled_key: str | None = None
    older_keys: tuple[str, ...] = ()
    types_key: str | None = "layer_types"

    @property
    def fields(self) -> tuple[str, ...]:
        """The one field."""
        return ("sliding_window",)

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys that the row reads."""
        others = [key for key in (self.types_key, self.enabled_key) if key is not None]
        return ("sliding_window", *others, *self.older_keys)

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """See `FieldRow.read`."""
        types = (raw.get(self.types_key) if self.types_key else None) or self.default(raw, known)
        if not isinstance(types, list | tuple):
            raise ConfigError(f"{self.types_key}={shown(types)} must be a list with the type of each layer")
        if len(types) != known["n_layers"]:
            raise ConfigError(
                f"{self.types_key} has {len(types)} entries for {known['n_layers']} layers; give one for each layer"
            )
        for kind in types:
            if kind not in (FULL, SLIDING):
                raise ConfigError(f"{self.types_key} has {shown(kind)}; supported are '{FULL}' and '{SLIDING}'")
        window = raw.get("sliding_window", self.window)
        if window is not None and (not isinstance(window, int) or isinstance(window, bool)):
            raise ConfigError(f"sliding_window={shown(window)} must be of type int")
        if self.enabled_key is not None and not raw.get(self.enabled_key, False):
            window = None
        return {"sliding_window": one_or_each([window if kind == SLIDING else None for kind in types])}

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """See `FieldRow.write`."""
        windows = sorted({window for window in config.windows if window is not None})
        if len(windows) > 1:
            raise ConfigError(
                f"sliding_window={config.sliding_window!r} cannot be expressed; all windows must be alike"
            )
        written: dict[str, Any] = {"sliding_window": windows[0] if windows else None}
        types = [FULL if window is None else SLIDING for window in config.windows]
        if self.types_key is not None:
            written[self.types_key] = types
        elif windows and types != list(self.default(base, {"n_layers": config.n_layers})):
            raise ConfigError(
                f"sliding_window={config.sliding_window!r} cannot be expressed; which blocks have a window is fixed"
            )
        if self.enabled_key is not None:
            written[self.enabled_key] = bool(windows)
        return written


def always_sliding(raw: Mapping[str, Any], known: FieldsSoFar) -> list[str]:
    """A value of `LayerTypes.default`: every layer has the window."""
    return [SLIDING] * known["n_layers"]


def sliding_except_every(n: int, key: str | None = None) -> Callable[[Mapping[str, Any], FieldsSoFar], list[str]]:
    """A value of `LayerTypes.default`: every `n`-th layer has full attention; `key` may override `n`."""

    def types(raw: Mapping[str, Any], known: FieldsSoFar) -> list[str]:
        every = period(raw, n, key)
        return [SLIDING if (block + 1) % every else FULL for block in range(known["n_layers"])]

    return types


def sliding_without(field: str) -> Callable[[Mapping[str, Any], FieldsSoFar], list[str]]:
    """A value of `LayerTypes.default`: blocks whose `field`, of an earlier row, is None have the window."""

    def types(raw: Mapping[str, Any], known: FieldsSoFar) -> list[str]:
        return [SLIDING if value is None else FULL for value in each_block(known[field], known["n_layers"])]

    return types


@dataclass(frozen=True)
class LayerRopes:
    """The row for RoPE if blocks with a sliding window have a different RoPE than blocks without one.

    `config.json` has `rope_parameters` with an entry for each type of layer, or in older files `rope_theta` and
    `rope_scaling` for the full layers and `sliding_theta_key` for the others; without such a key (None) these have
    `sliding_theta` there. The rows of `max_positions`, `head_dim` and `sliding_window` must come before it.
    """

    full_theta: float
    sliding_theta: float
    sliding_theta_key: str | None = "rope_local_base_freq"
    dialect: RopeDialect = field(default_factory=RopeDialect)

    @property
    def fields(self) -> tuple[str, ...]:
        """The one field."""
        return ("rope",)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of both spellings."""
        keys = ("rope_parameters", "rope_theta", "rope_scaling")
        return keys if self.sliding_theta_key is None else (*keys, self.sliding_theta_key)

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """See `FieldRow.read`."""
        ropes = self._read_both(raw, known)
        windows = each_block(known["sliding_window"], known["n_layers"])
        return {"rope": one_or_each([ropes[FULL if window is None else SLIDING] for window in windows])}

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """See `FieldRow.write`."""
        known = {name: getattr(config, name) for name in ("max_positions", "head_dim")}
        ropes = self._read_both(base, known)  # a type that no block has keeps the file's values
        for kind in ropes:
            of_kind = {
                rope
                for rope, window in zip(config.ropes, config.windows, strict=True)
                if (FULL if window is None else SLIDING) == kind
            }
            if len(of_kind) > 1 or None in of_kind:
                raise ConfigError(f"rope={config.rope!r} cannot be expressed; blocks of one type must have one RoPE")
            ropes[kind] = next(iter(of_kind), ropes[kind])
        written = {kind: self.dialect.write(rope, config.head_dim) for kind, rope in ropes.items()}
        full, sliding = ropes[FULL], ropes[SLIDING]
        old_spelling = base.get("rope_parameters") is None and any(key in base for key in self.keys)
        key = self.sliding_theta_key
        is_plain = sliding.kind == "default" and not written[SLIDING]
        if old_spelling and is_plain and (key is not None or sliding.theta == self.sliding_theta):
            scaling = None if full.kind == "default" else {"rope_type": full.kind, **written[FULL]}
            theta = {} if key is None else {key: sliding.theta}
            return {"rope_theta": full.theta, **theta, "rope_scaling": scaling}
        return {
            "rope_parameters": {
                kind: {"rope_type": rope.kind, "rope_theta": rope.theta, **written[kind]}
                for kind, rope in ropes.items()
            }
        }

    def keys_by_field(self, raw: Mapping[str, Any]) -> dict[str, str]:
        """See `fields.keys_by_field`."""
        return rope_keys_by_field(raw)

    def _read_both(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, RopeConfig]:
        parameters, scaling = (_mapping(key, raw.get(key)) for key in ("rope_parameters", "rope_scaling"))
        full, sliding = (_mapping(f"rope_parameters.{kind}", parameters.get(kind)) for kind in (FULL, SLIDING))
        full = {**full, **scaling}
        sliding_theta = None if self.sliding_theta_key is None else raw.get(self.sliding_theta_key)

        def read(kind: str, of_kind: Mapping[str, Any], theta: Any, default: float) -> RopeConfig:
            return self.dialect.read(of_kind, f"rope_parameters.{kind}", default if theta is None else theta, known)

        return {
            FULL: read(FULL, full, raw.get("rope_theta"), self.full_theta),
            SLIDING: read(SLIDING, sliding, sliding_theta, self.sliding_theta),
        }


def _mapping(key: str, value: Any) -> Mapping[str, Any]:
    """An object of a `config.json`; empty for null. Raises ConfigError if it is something else."""
    if value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"{key}={shown(value)} must be an object")
    return value or {}


def period(raw: Mapping[str, Any], n: int, key: str | None) -> int:
    """The number of blocks after which a pattern repeats: the value of `key`, or `n`.

    Raises:
        ConfigError: the value is no positive integer.
    """
    every = n if key is None else raw.get(key) or n
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        raise ConfigError(f"{key}={shown(every)} must be a positive integer")
    return every


def one_or_each(values: Sequence[Any]) -> Any:
    """A single value if all blocks have the same, else a tuple with one value for each block."""
    return values[0] if len(set(values)) == 1 else tuple(values)


def each_block(value: Any, n_layers: int) -> tuple[Any, ...]:
    """The value of each block, of a field that is one value or a tuple with one for each."""
    return value if isinstance(value, tuple) else (value,) * n_layers
