"""Rows of a family's config table: keys of `config.json` and the fields of `ReaLModelConfig` that they state.

Each row is read in both directions, so that loading and saving cannot drift apart. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from reallm.errors import ConfigError

REQUIRED = object()
"""Default of a key that `config.json` must have."""

FieldsSoFar = Mapping[str, Any]
"""Fields of `ReaLModelConfig` that the rows above gave."""

Default = Any | Callable[[FieldsSoFar], Any]
"""A value, or a function of the fields that the rows above gave."""


class FieldRow(Protocol):
    """One fact of an architecture: the keys of `config.json` that state it and the fields of `ReaLModelConfig`."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of `ReaLModelConfig`."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of `config.json`."""

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """Values of `fields`; `known` are the fields that the rows above gave. Raises ConfigError."""

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """Values of (some of) `keys`, spelled as in `base` where that has a spelling. Raises ConfigError.

        `config` has the fields as attributes: a `ReaLModelConfig`, or in a `Nested` row a part of one.
        """


@dataclass(frozen=True)
class Conversion:
    """A value in `config.json` to ours and back: `Conversion(lambda theirs: 1 / theirs, lambda ours: 1 / ours)`."""

    to_ours: Callable[[Any], Any]
    to_theirs: Callable[[Any], Any]


RECIPROCAL = Conversion(lambda theirs: 1 / theirs, lambda ours: _tidy(1 / ours))
"""What they divide by, we multiply with."""

INVERSE_SQUARE_ROOT = Conversion(lambda theirs: theirs**-0.5, lambda ours: _tidy(ours**-2))
"""Their size, our scale: attention scores are divided by the root of it."""


@dataclass(frozen=True)
class Key:
    """A row with one key: `Key("rms_norm_eps", float, "norm_eps", default=1e-6)`.

    `default` stands in where the key is absent (as in the family's transformers class), and for null unless `nullable`.
    It is a value of the field: one of ours, where `spellings` or `conversion` tell theirs from ours.
    `spellings` maps the values in `config.json` to ours; of several that mean the same the first is written.
    `conversion` computes ours from theirs. `aliases` are other keys for the same, which older files may have.
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
        """See `Row.read`."""
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
        """See `Row.write`."""
        values = {name: getattr(config, name) for name in self.fields}
        value = values[self.fields[0]]
        if any(other != value for other in values.values()):
            said = ", ".join(f"{name}={other!r}" for name, other in values.items())
            raise ConfigError(f"{said} differ, but '{self.key}' sets them all; give them one value")
        return {self._spelling(base): self._to_theirs(value)}

    def _spelling(self, raw: Mapping[str, Any]) -> str:
        return next((key for key in self.keys if key in raw), self.key)

    def _to_ours(self, key: str, value: Any) -> Any:
        """`value` as ours, if its type and spelling are right."""
        wanted = (int, float) if self.kind is float else self.kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and self.kind is not bool):
            raise ConfigError(f"{key}={value!r} must be of type {self.kind.__name__}")
        if self.conversion is not None:
            return self.conversion.to_ours(value)
        if self.spellings is None:
            return value
        if value not in self.spellings:
            raise ConfigError(f"{key}={value!r} is not supported; supported are {', '.join(map(str, self.spellings))}")
        return self.spellings[value]

    def _to_theirs(self, value: Any) -> Any:
        if value is None:
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
    """A row without a key: a field that follows from those of the rows above, `Derived("n_kv_heads", same_as(...))`.

    A field that no row needs can as well be a constant of the table.
    """

    field: str
    value: Callable[[FieldsSoFar], Any]

    @property
    def fields(self) -> tuple[str, ...]:
        """The one field."""
        return (self.field,)

    @property
    def keys(self) -> tuple[str, ...]:
        """None."""
        return ()

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """See `Row.read`."""
        return {self.field: self.value(known)}

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing, if the field has the value that follows; see `Row.write`."""
        value, follows = getattr(config, self.field), self.value(_Fields(config))
        if value != follows:
            raise ConfigError(f"{self.field}={value!r} cannot be stated in config.json; it must be {follows!r}")
        return {}


@dataclass(frozen=True)
class Nested:
    """Rows for the fields of a value that is itself one field: `Nested("moe", MoEConfig, (Key(...), ...))`.

    `make` is called with what the rows read, by name. Where the field is None, nothing is written.
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
        """Those of all rows."""
        return tuple(key for row in self.rows for key in row.keys)

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """See `Row.read`; the rows know the fields of the rows above, too."""
        values = _Layer(known)
        for row in self.rows:
            values.update(row.read(raw, values))
        return {self.field: self.make(**values)}

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """See `Row.write`."""
        if getattr(config, self.field) is None:
            return {}
        part = _Part(getattr(config, self.field), config)
        return {key: value for row in self.rows for key, value in row.write(part, base).items()}


@dataclass(frozen=True)
class Computed:
    """A row whose meaning is a pair of functions, for what no other row can say; see `Row` for their arguments.

    `reading` gives the fields, `writing` the keys to change, null for one that no longer holds. Where another row is
    almost right, they call its `read` and `write`.
    """

    keys: tuple[str, ...]
    fields: tuple[str, ...]
    reading: Callable[[Mapping[str, Any], FieldsSoFar], dict[str, Any]]
    writing: Callable[[Any, Mapping[str, Any]], dict[str, Any]]

    def read(self, raw: Mapping[str, Any], known: FieldsSoFar) -> dict[str, Any]:
        """See `Row.read`."""
        return self.reading(raw, known)

    def write(self, config: Any, base: Mapping[str, Any]) -> dict[str, Any]:
        """See `Row.write`."""
        return self.writing(config, base)


class _Fields(Mapping[str, Any]):
    """The fields of a configuration by name."""

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getitem__(self, name: str) -> Any:
        return getattr(self._config, name)

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self._config))

    def __len__(self) -> int:
        return len(vars(self._config))


class _Layer(dict[str, Any]):
    """Values on top of others, which are asked for what is not here."""

    def __init__(self, below: FieldsSoFar) -> None:
        super().__init__()
        self._below = below

    def __missing__(self, name: str) -> Any:
        return self._below[name]


class _Part:
    """The fields of a part of a configuration and, where it has none of the name, those of the whole."""

    def __init__(self, part: Any, whole: Any) -> None:
        self._part, self._whole = part, whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part if hasattr(self._part, name) else self._whole, name)


def _tidy(value: float) -> float:
    """Without the last digits, which the way there and back has made: 256.00000000000006 -> 256."""
    rounded = float(f"{value:.12g}")
    return int(rounded) if rounded.is_integer() else rounded
