"""Tables that say how a family's `config.json` and tensor names correspond to ours. Imports no torch.

Each table is read in both directions, so that loading and saving cannot drift apart.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any, Protocol

from reallm.errors import ConfigError
from reallm.hf.keys import RESTRICTED, Allowed, is_irrelevant
from reallm.model.config import ReaLModelConfig

REQUIRED = object()
"""Default of a key that `config.json` must have."""

Default = Any | Callable[[Mapping[str, Any]], Any]
"""A value, or a function of the fields of `ReaLModelConfig` that earlier rows gave."""


class Row(Protocol):
    """One fact of an architecture: the keys of `config.json` that state it and the fields of `ReaLModelConfig`."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of `ReaLModelConfig`."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of `config.json`."""

    def read(self, raw: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
        """Values of `fields`; `known` are the fields that the rows above gave. Raises ConfigError."""

    def write(self, config: ReaLModelConfig, base: Mapping[str, Any]) -> dict[str, Any]:
        """Values of (some of) `keys`, spelled as in `base` where that has a spelling. Raises ConfigError."""


@dataclass(frozen=True)
class Key:
    """A row with one key: `Key("rms_norm_eps", float, "norm_eps", default=1e-6)`.

    `default` stands in where the key is absent (as in the family's transformers class), and for null unless `nullable`.
    `spellings` maps the values in `config.json` to ours; of several that mean the same the first is written.
    """

    key: str
    kind: type
    field: str | tuple[str, ...]
    default: Default = REQUIRED
    nullable: bool = False
    spellings: Mapping[str, str] | None = None

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of `ReaLModelConfig`; several get the same value."""
        return (self.field,) if isinstance(self.field, str) else self.field

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)

    def read(self, raw: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
        """See `Row.read`."""
        value = raw.get(self.key)
        if value is not None:
            value = self._checked(value)
        elif not (self.nullable and self.key in raw):
            if self.default is REQUIRED:
                raise ConfigError(f"'{self.key}' is missing; add it")
            value = self.default(known) if callable(self.default) else self.default
        return dict.fromkeys(self.fields, value)

    def write(self, config: ReaLModelConfig, base: Mapping[str, Any]) -> dict[str, Any]:
        """See `Row.write`."""
        values = {name: getattr(config, name) for name in self.fields}
        value = values[self.fields[0]]
        if any(other != value for other in values.values()):
            said = ", ".join(f"{name}={other!r}" for name, other in values.items())
            raise ConfigError(f"{said} differ, but '{self.key}' sets them all; give them one value")
        if self.spellings is not None:
            found = [theirs for theirs, ours in self.spellings.items() if ours == value]
            if not found:
                raise ConfigError(f"{self.fields[0]}={value!r} is not one of {', '.join(self.spellings.values())}")
            return {self.key: found[0]}
        return {self.key: value}

    def _checked(self, value: Any) -> Any:
        """`value` as ours, if its type and spelling are right."""
        wanted = (int, float) if self.kind is float else self.kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and self.kind is not bool):
            raise ConfigError(f"{self.key}={value!r} must be of type {self.kind.__name__}")
        if self.spellings is None:
            return value
        if value not in self.spellings:
            raise ConfigError(f"{self.key}={value!r} is not supported; supported are {', '.join(self.spellings)}")
        return self.spellings[str(value)]


@dataclass(frozen=True)
class ConfigTable:
    """What every key of a family's `config.json` means: used by a row, without effect, or restricted.

    Of keys that the table does not know, those that the family's transformers class has are refused; others have no
    effect in transformers, nor here.

    `constants` are fields of `ReaLModelConfig` that no key states because they are the same for the whole family;
    a field in neither `rows` nor `constants` has its default value. `irrelevant` and `restricted` add to the lists
    that hold for all families (`reallm.hf.keys`).
    """

    rows: tuple[Row, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)
    irrelevant: frozenset[str] = frozenset()
    restricted: Mapping[str, Allowed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fields = {item.name: item for item in dataclasses.fields(ReaLModelConfig)}
        stated = [name for row in self.rows for name in row.fields] + list(self.constants)
        for name in stated:
            if name not in fields or name == "is_critic":
                raise ConfigError(f"config table: ReaLModelConfig has no field '{name}' to be set by a table")
            if stated.count(name) > 1:
                raise ConfigError(f"config table: field '{name}' is stated twice")
        for name, item in fields.items():
            no_default = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
            if no_default and name not in stated:
                raise ConfigError(f"config table: field '{name}' has no default and no row")

    def read(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Fields of `ReaLModelConfig` (all but `is_critic`) that a `config.json` states.

        Keys that the table does not know (`unknown_keys`) are passed over.

        Raises:
            ConfigError: a value that is not allowed; names the key too.
        """
        self._refuse_restricted(raw)
        values = dict(self.constants)
        for row in self.rows:
            values.update(row.read(raw, values))
        return values

    def write(self, config: ReaLModelConfig, base: Mapping[str, Any], *, complete: bool = False) -> dict[str, Any]:
        """`base` changed as little as possible so that it states `config`; `complete` states every row in full.

        Raises:
            ConfigError: a field with a value that the family cannot state.
        """
        known = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
        self._refuse_inexpressible(config)
        raw = dict(base)
        for row in self.rows:
            # Defaults that follow from other fields follow from ours, so that a changed size does not leave a stale
            # default behind.
            if not complete and all(known[name] == value for name, value in row.read(base, known).items()):
                continue
            for key in row.keys:
                raw.pop(key, None)
            raw.update(row.write(config, base))
        return raw

    def unknown_keys(self, raw: Mapping[str, Any]) -> list[str]:
        """Keys with a value that are neither used, nor restricted, nor known to have no effect."""
        told = {key for row in self.rows for key in row.keys} | self.irrelevant | self._restricted.keys()
        return [key for key, value in raw.items() if value is not None and key not in told and not is_irrelevant(key)]

    @property
    def _restricted(self) -> Mapping[str, Allowed]:
        return {**RESTRICTED, **self.restricted}

    def _refuse_restricted(self, raw: Mapping[str, Any]) -> None:
        used = {key for row in self.rows for key in row.keys} | self.irrelevant
        for key, allowed in self._restricted.items():
            value = raw.get(key)
            if value is not None and key not in used and value not in allowed.values:
                raise ConfigError(f"unsupported {key}={_short(value)}; {allowed.remedy}")

    def _refuse_inexpressible(self, config: ReaLModelConfig) -> None:
        stated = {name for row in self.rows for name in row.fields}
        for item in dataclasses.fields(config):
            if item.name in stated or item.name == "is_critic":
                continue
            fixed = self.constants.get(item.name, item.default)
            value = getattr(config, item.name)
            if value != fixed:
                raise ConfigError(f"{item.name}={value!r} cannot be stated in config.json; it must be {fixed!r}")


@dataclass(frozen=True)
class WeightTable:
    """Modules of ours -> modules of the checkpoint; `{}` stands for the number of the block, from 0.

    Keys are relative to the layer: `{"attn.q": "model.layers.{}.self_attn.q_proj"}` says that `layers.3.attn.q.weight`
    is `model.layers.2.self_attn.q_proj.weight`, and the same for biases. Tensors are written in the order of the table.
    `critic_head` replaces entries of `head` for a scalar head. `ignored` are patterns (as in a shell) of tensors
    without effect.
    """

    embedding: Mapping[str, str]
    block: Mapping[str, str]
    head: Mapping[str, str]
    critic_head: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part, numbered in ((self.embedding, 0), (self.block, 1), (self.head, 0), (self.critic_head, 0)):
            for ours, theirs in part.items():
                if theirs.count("{}") != numbered:
                    raise ConfigError(f"weight table: '{ours}': '{theirs}' must have {{}} {numbered} times")
        for is_critic in (False, True):
            theirs_all = [*self.embedding.values(), *self.block.values(), *self._head(is_critic).values()]
            for theirs in theirs_all:
                if theirs_all.count(theirs) > 1:
                    raise ConfigError(f"weight table: '{theirs}' stands for two modules; the table has no inverse")

    def hf_name(self, name: str, n_layers: int, *, is_critic: bool = False) -> str:
        """The checkpoint's name of a parameter: `layers.1.mlp.up.weight` -> `model.layers.0.mlp.up_proj.weight`.

        Raises:
            ConfigError: a parameter that the family does not have.
        """
        layer, module, kind = _split(name)
        theirs = self._part(layer, n_layers, is_critic).get(module)
        if theirs is None:
            raise ConfigError(f"parameter '{name}' has no counterpart in the family's checkpoints")
        return f"{theirs.format(layer - 1)}.{kind}"

    def position(self, name: str, n_layers: int, *, is_critic: bool = False) -> tuple[int, int, bool]:
        """Sort key that puts parameters of ours in the order in which checkpoints hold them."""
        layer, module, kind = _split(name)
        return layer, list(self._part(layer, n_layers, is_critic)).index(module), kind == "bias"

    def our_name(self, hf_name: str, n_layers: int, *, is_critic: bool = False) -> str | None:
        """The inverse of `hf_name`; None for a tensor that is in no layer of ours."""
        module, _, kind = hf_name.rpartition(".")
        if kind not in ("weight", "bias"):
            return None
        # Each whole number is a candidate for the block's: "model.layers.2.mlp" -> ("model.layers.{}.mlp", 2).
        for found in re.finditer(r"(?<![^.])(0|[1-9]\d*)(?![^.])", module):
            ours = self._blocks_inverse.get(f"{module[: found.start()]}{{}}{module[found.end() :]}")
            if ours is not None and int(found[0]) < n_layers:
                return f"layers.{int(found[0]) + 1}.{ours}.{kind}"
        for layer, part in ((0, self.embedding), (n_layers + 1, self._head(is_critic))):
            for ours, theirs in part.items():
                if theirs == module:
                    return f"layers.{layer}.{ours}.{kind}"
        return None

    def is_ignored(self, hf_name: str) -> bool:
        """Whether a tensor of the checkpoint has no effect."""
        return any(fnmatchcase(hf_name, pattern) for pattern in self.ignored)

    def _head(self, is_critic: bool) -> Mapping[str, str]:
        return {**self.head, **self.critic_head} if is_critic else self.head

    def _part(self, layer: int, n_layers: int, is_critic: bool) -> Mapping[str, str]:
        if layer == 0:
            return self.embedding
        if layer <= n_layers:
            return self.block
        return self._head(is_critic) if layer == n_layers + 1 else {}

    @cached_property
    def _blocks_inverse(self) -> dict[str, str]:
        return {theirs: ours for ours, theirs in self.block.items()}


def _split(name: str) -> tuple[int, str, str]:
    """`layers.3.attn.q.weight` -> `(3, "attn.q", "weight")`."""
    match = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if match is None:
        raise ConfigError(f"'{name}' is not the name of a parameter: layers.<number>.<module>.<weight or bias>")
    return int(match[1]), match[2], match[3]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
