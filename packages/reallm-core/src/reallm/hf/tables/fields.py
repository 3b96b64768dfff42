"""Rows of a family's config table, which convert between keys of `config.json` and fields of `ReaLModelConfig`.

Each row converts in both directions, so that loading and saving cannot diverge. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from reallm.errors import ConfigError
from reallm.foreign_files import is_finite_number, shown

REQUIRED = object()
"""Default of a key that `config.json` must have."""

FieldsSoFar = Mapping[str, Any]
"""Fields of `ReaLModelConfig` that earlier rows have set."""

Default = Any | Callable[[FieldsSoFar], Any]
"""A value, or a function of the fields that earlier rows have set."""


class FieldRow(Protocol):
    """One row of a `ConfigTable`: keys of `config.json` and the fields of `ReaLModelConfig` that they set."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of `ReaLModelConfig`."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of `config.json`."""

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """The values of `fields` from a `config.json`; `known` are the fields of earlier rows. Raises ConfigError."""

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """The values of (some of) `keys`, under the aliases and spellings that `base` uses. Raises ConfigError.

        `config` has the fields as attributes: a `ReaLModelConfig`, or in a `Nested` row the value of one of its fields.
        """


@dataclass(frozen=True)
class Conversion:
    """Value in `config.json` -> ours, and back: `Conversion(lambda theirs: 1 / theirs, lambda ours: 1 / ours)`."""

    to_ours: Callable[[Any], Any]
    to_theirs: Callable[[Any], Any]


RECIPROCAL = Conversion(lambda theirs: 1 / theirs, lambda ours: _without_rounding_error(1 / ours))
"""`config.json` has the divisor, `ReaLModelConfig` the factor."""

INVERSE_SQUARE_ROOT = Conversion(lambda theirs: theirs**-0.5, lambda ours: _without_rounding_error(ours**-2))
"""`config.json` has a size, `ReaLModelConfig` the scale of attention scores, one over its square root."""


@dataclass(frozen=True)
class Key:
    """A row with one key: `Key("rms_norm_eps", float, "norm_eps", default=1e-6)`.

    `default` is the field's value if the key is absent (the default of the family's transformers class), and if it is
    null unless `nullable`. It is a value of `ReaLModelConfig`: `spellings` and `conversion` are not applied to it.
    `spellings` maps values in `config.json` to values of the field, one of which may be None; if several map to one
    value, the first is written.
    `conversion` computes the field's value. `aliases` are further keys for the same, which older files may have.
    """

    key: str
    kind: type
    field: str | tuple[str, ...]
    default: Default = REQUIRED
    nullable: bool = False
    spellings: Mapping[Any, Any] | None = None
    conversion: Conversion | None = None
    aliases: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of `ReaLModelConfig`; several get the same value."""
        return (self.field,) if isinstance(self.field, str) else self.field

    @property
    def keys(self) -> tuple[str, ...]:
        """The key and its aliases."""
        return (self.key, *self.aliases)

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """See `FieldRow.read`."""
        key = self._spelling(raw)
        value = raw.get(key)
        if value is not None:
            value = self._to_ours(key, value)
        elif not (self.nullable and key in raw):
            if self.default is REQUIRED:
                raise ConfigError(f"'{self.key}' is missing; add it")
            value = self.default(known) if callable(self.default) else self.default
        return dict.fromkeys(self.fields, value)

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """See `FieldRow.write`."""
        values = {name: getattr(config, name) for name in self.fields}
        value = values[self.fields[0]]
        if any(other != value for other in values.values()):
            shown = ", ".join(f"{name}={other!r}" for name, other in values.items())
            raise ConfigError(f"{shown} differ, but '{self.key}' sets them all; give them one value")
        return {self._spelling(base): self._to_theirs(value)}

    def keys_by_field(self, raw: Mapping[str, Any]) -> dict[str, str]:
        """See `keys_by_field`."""
        return dict.fromkeys(self.fields, self._spelling(raw))

    def _spelling(self, raw: Mapping[str, Any]) -> str:
        return next((key for key in self.keys if key in raw), self.key)

    def _to_ours(self, key: str, value: Any) -> Any:
        """The field's value, if type and spelling of `value` are right."""
        wanted = (int, float) if self.kind is float else self.kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and self.kind is not bool):
            raise ConfigError(f"{key}={shown(value)} must be of type {self.kind.__name__}")
        if self.kind in (int, float) and not is_finite_number(value):
            raise ConfigError(f"{key}={shown(value)} must be a finite number of at most 64 bits")
        if self.conversion is not None:
            return self.conversion.to_ours(value)
        if self.spellings is None:
            return value
        if value not in self.spellings:
            raise ConfigError(
                f"{key}={shown(value)} is not supported; supported are {', '.join(map(str, self.spellings))}"
            )
        return self.spellings[value]

    def _to_theirs(self, value: Any) -> Any:
        if value is None and (self.spellings is None or None not in self.spellings.values()):
            return None
        if self.conversion is not None:
            return self.conversion.to_theirs(value)
        if self.spellings is None:
            return value
        found = [theirs for theirs, ours in self.spellings.items() if ours == value]
        if not found:
            raise ConfigError(
                f"{self.fields[0]}={value!r} is not one of {', '.join(map(str, self.spellings.values()))}"
            )
        return found[0]


@dataclass(frozen=True)
class Derived:
    """A row without a key: a field that follows from fields of earlier rows, `Derived("n_kv_heads", same_as(...))`.

    A field that no other row needs can be one of the table's `constants` instead.
    """

    field: str
    value: Callable[[FieldsSoFar], Any]

    @property
    def fields(self) -> tuple[str, ...]:
        """The one field."""
        return (self.field,)

    @property
    def keys(self) -> tuple[str, ...]:
        """No keys."""
        return ()

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """See `FieldRow.read`."""
        return {self.field: self.value(known)}

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """Write nothing, provided that the field has the derived value; see `FieldRow.write`."""
        value, derived = getattr(config, self.field), self.value(AttributeMapping(config))
        if value != derived:
            raise ConfigError(f"{self.field}={value!r} cannot be expressed in config.json; it must be {derived!r}")
        return {}


@dataclass(frozen=True)
class Nested:
    """A field whose value is itself a dataclass with rows: `Nested("moe", MoEConfig, (Key(...), ...))`.

    `make` is called with the fields that the rows read, by keyword. If the field is None, nothing is written.
    """

    field: str
    make: Callable[..., Any]
    rows: tuple[FieldRow, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """The one field."""
        return (self.field,)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all nested rows."""
        return tuple(key for row in self.rows for key in row.keys)

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """See `FieldRow.read`; the nested rows also see the fields of earlier rows."""
        values = _Overlay(known)
        for row in self.rows:
            values.update(row.read(raw, values))
        return {self.field: self.make(**values)}

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """See `FieldRow.write`."""
        if getattr(config, self.field) is None:
            return {}
        nested = _AttributesOfBoth(getattr(config, self.field), config)
        return {key: value for row in self.rows for key, value in row.write(nested, base).items()}

    def keys_by_field(self, raw: Mapping[str, Any]) -> dict[str, str]:
        """See `keys_by_field`; fields are named as in `moe.top_k`."""
        return {f"{self.field}.{name}": key for name, key in keys_by_field(self.rows, raw).items()}


@dataclass(frozen=True)
class Computed:
    """A row made of two functions, for conversions that no other row can express; see `FieldRow` for their arguments.

    `reading` returns the fields, `writing` the keys to change, with None for a key that no longer applies. If another
    row is almost right, the functions can call its `read` and `write`.
    """

    keys: tuple[str, ...]
    fields: tuple[str, ...]
    reading: Callable[[Mapping[str, Any], FieldsSoFar], dict[str, Any]]
    writing: Callable[[Any, Mapping[str, Any]], dict[str, Any]]

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """See `FieldRow.read`."""
        return self.reading(raw, known)

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """See `FieldRow.write`."""
        return self.writing(config, base)

    def keys_by_field(self, raw: Mapping[str, Any]) -> dict[str, str]:
        """See `keys_by_field`; a row of several fields says nothing about each."""
        return {self.fields[0]: self.keys[0]} if len(self.fields) == 1 and self.keys else {}


def keys_by_field(rows: Iterable[FieldRow], raw: Mapping[str, Any]) -> dict[str, str]:
    """Fields of `ReaLModelConfig` -> the keys of a `config.json` that set them, in its spelling; for errors.

    Rows have it as a method, if they can tell.
    """
    found: dict[str, str] = {}
    for row in rows:
        if hasattr(row, "keys_by_field"):
            found |= row.keys_by_field(raw)
    return found


class AttributeMapping(Mapping[str, Any]):
    """The attributes of a configuration, as a mapping."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getitem__(self, name: str) -> Any:
        return getattr(self._config, name)

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self._config))

    def __len__(self) -> int:
        return len(vars(self._config))


class _Overlay(dict[str, Any]):
    """A dict that falls back to another mapping."""

    def __init__(self, fallback: FieldsSoFar) -> None:
        super().__init__()
        self._fallback = fallback

    def __missing__(self, name: str) -> Any:
        return self._fallback[name]


class _AttributesOfBoth:
    """The attributes of a nested value and, if it lacks one, of the configuration that contains it."""

    def __init__(self, nested: Any, config: Any) -> None:
        self._nested, self._config = nested, config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._nested if hasattr(self._nested, name) else self._config, name)


def _without_rounding_error(value: float) -> float:
    """Drop the digits added by converting back and forth: 256.00000000000006 -> 256."""
    rounded = float(f"{value:.12g}")
    return int(rounded) if rounded.is_integer() else rounded
