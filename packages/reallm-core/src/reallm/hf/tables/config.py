"""`ConfigTable`: the meaning of every key of a family's `config.json`. Imports no torch."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from reallm.deprecation import deprecated
from reallm.errors import ConfigError, did_you_mean
from reallm.foreign_files import reading, shown
from reallm.hf.tables.fields import FieldRow, FieldsSoFar, Key, keys_by_field
from reallm.hf.tables.ignored_keys import RESTRICTED, Allowed, is_irrelevant
from reallm.model.config import ALLOWED, SIZES, ReaLModelConfig, check_size, is_custom_class
from reallm.options import default_of

RENAMED_FIELDS: Mapping[str, tuple[str, ...]] = {
    "qkv_bias": ("q_bias", "k_bias", "v_bias"),
    "mlp_bias": ("gate_bias", "up_bias", "down_bias"),
}
"""Fields by their names in hook API 1.0 -> present names."""


@dataclass(frozen=True)
class ConfigTable:
    """The meaning of every key of a family's `config.json`: it is read by a row, has no effect, or is restricted.

    Keys that the table does not know are refused if the family's transformers class has them; other unknown keys have
    no effect in transformers or in reallm, and a notice names them.

    `constants` are fields of `ReaLModelConfig` without a key, because they are the same for the whole family or follow
    from other fields: a function is called with the fields that the rows have read. A field in neither `rows` nor
    `constants` has its default value. `irrelevant` keys have no effect and `restricted` keys allow only certain values;
    both add to the lists for all families (`reallm.hf.tables.ignored_keys`).

    Raises:
        ConfigError: a field does not exist, is set twice, or needs a row and has none.
    """

    rows: tuple[FieldRow, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)
    irrelevant: frozenset[str] = frozenset()
    restricted: Mapping[str, Allowed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rename_old_fields()
        fields = {item.name: item for item in dataclasses.fields(ReaLModelConfig)}
        stated = [name for row in self.rows for name in row.fields] + list(self.constants)
        for name in stated:
            if name not in fields or name == "is_critic":
                near = did_you_mean(name, fields)
                raise ConfigError(f"config table: ReaLModelConfig has no field '{name}' to be set by a table{near}")
            if stated.count(name) > 1:
                raise ConfigError(f"config table: field '{name}' is stated twice")
        for row in self.rows:
            if isinstance(row, Key):
                for value in (row.spellings or {}).values():
                    _check_value(row.fields, value, f"the spellings of '{row.key}'")
        for name, value in self.constants.items():
            if not callable(value):
                _check_value((name,), value, "the constants")
        keys = [key for row in self.rows for key in row.keys]
        for key in keys:
            if keys.count(key) > 1:
                raise ConfigError(f"config table: the key '{key}' is in two rows")
        for name, item in fields.items():
            if default_of(item) is dataclasses.MISSING and name not in stated:
                raise ConfigError(f"config table: field '{name}' has no default and no row")

    def _rename_old_fields(self) -> None:
        """Replace field names of hook API 1.0 by the present ones."""

        def present_names(name: str) -> tuple[str, ...]:
            names = RENAMED_FIELDS.get(name, (name,))
            if names != (name,):
                instead = " and ".join(f"'{new}'" for new in names)
                deprecated(f"the field '{name}' of ReaLModelConfig", instead=instead, since="1.1", removed_in="2.0")
            return tuple(new for new in names if new != "gate_bias" or self.constants.get("mlp") != "plain")

        rows = tuple(
            dataclasses.replace(row, field=tuple(new for name in row.fields for new in present_names(name)))
            if isinstance(row, Key) and any(name in RENAMED_FIELDS for name in row.fields)
            else row
            for row in self.rows
        )
        constants = {new: value for name, value in self.constants.items() for new in present_names(name)}
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "constants", constants)

    def read(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Read the fields of `ReaLModelConfig` (all but `is_critic`) from a `config.json`.

        Keys that the table does not know (`unknown_keys`) are skipped.

        Raises:
            ConfigError: a value is not allowed; names the key.
        """
        self._refuse_restricted(raw)
        values = _FieldsRead({name: value for name, value in self.constants.items() if not callable(value)})
        for row in self.rows:
            values.reader = row
            stated = [key for key in row.keys if key in raw] or row.fields
            with reading(" or ".join(stated), error=ConfigError, problem="has a value that cannot be read"):
                values.update(row.read(raw, values))
            for name in SIZES & set(row.fields):  # at once: later rows make lists of such lengths, and divide by them
                check_size(name, values[name])
        for name, value in self.constants.items():
            if callable(value):
                values[name] = value(values)
        return dict(values)

    def write(self, config: ReaLModelConfig, base: Mapping[str, Any], *, complete: bool = False) -> dict[str, Any]:
        """`base` with the fewest changes that express `config`; `complete` writes every row in full.

        Raises:
            ConfigError: the family cannot express a field's value.
        """
        known = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
        self._refuse_inexpressible(config, known)
        # nothing is written quantized
        raw = {key: value for key, value in base.items() if key != "quantization_config" or not value}
        for row in self.rows:
            # Derived defaults are computed from `config`, so that a changed size leaves no stale default behind.
            if not complete and all(known[name] == value for name, value in row.read(base, known).items()):
                continue
            for key in row.keys:
                raw.pop(key, None)
            raw.update(row.write(config, base))
        return raw

    def unknown_keys(self, raw: Mapping[str, Any]) -> list[str]:
        """Keys with a value that are neither read by a row, nor restricted, nor known to have no effect."""
        known = {key for row in self.rows for key in row.keys} | self.irrelevant | self._restricted.keys()
        return [key for key, value in raw.items() if value is not None and key not in known and not is_irrelevant(key)]

    def in_terms_of_file(self, message: str, raw: Mapping[str, Any]) -> str:
        """An error about fields of `ReaLModelConfig`, with the keys of the `config.json` that they were read from.

        `n_kv_heads=3` becomes `num_key_value_heads=3`, `rope.factor` becomes `rope_scaling.factor`.
        """
        keys = keys_by_field(self.rows, raw)
        # a field that is also a word, such as `activation`, is meant only with a value
        return re.sub(
            r"\b\w+(\.\w+)?\b(?==)|\b(?=\w*[._])\w+(\.\w+)?\b", lambda found: keys.get(found[0], found[0]), message
        )

    @property
    def _restricted(self) -> Mapping[str, Allowed]:
        return {**RESTRICTED, **self.restricted}

    def _refuse_restricted(self, raw: Mapping[str, Any]) -> None:
        used = {key for row in self.rows for key in row.keys} | self.irrelevant
        for key, allowed in self._restricted.items():
            value = raw.get(key)
            if value is not None and key not in used and value not in allowed.values:
                raise ConfigError(f"unsupported {key}={shown(value)}; {allowed.remedy}")

    def _refuse_inexpressible(self, config: ReaLModelConfig, known: FieldsSoFar) -> None:
        stated = {name for row in self.rows for name in row.fields}
        for item in dataclasses.fields(config):
            if item.name in stated or item.name == "is_critic":
                continue
            fixed = self.constants.get(item.name, default_of(item))
            fixed = fixed(known) if callable(fixed) else fixed
            value = getattr(config, item.name)
            if value != fixed:
                raise ConfigError(f"{item.name}={value!r} cannot be expressed in config.json; it must be {fixed!r}")


def _check_value(fields: Iterable[str], value: Any, where: str) -> None:
    """Raise ConfigError if `value` is not one that the fields allow."""
    for name in fields:
        allowed = ALLOWED.get(name)
        for one in value if isinstance(value, tuple) else (value,):
            if allowed is None or one in allowed or (isinstance(one, str) and is_custom_class(one)):
                continue
            names = [each for each in allowed if each is not None]
            near = did_you_mean(str(one), names)
            raise ConfigError(
                f"config table: {where} give {name}={one!r}, which is not one of {', '.join(names)}{near}"
            )


class _FieldsRead(dict[str, Any]):
    """Fields of the rows read so far; a missing one is an error that names the row which needs it."""

    reader: FieldRow

    def __missing__(self, name: str) -> Any:
        row = f"the row of {' and '.join(map(repr, self.reader.fields))}"
        raise ConfigError(f"config table: {row} needs the field '{name}', whose row must come before it")
