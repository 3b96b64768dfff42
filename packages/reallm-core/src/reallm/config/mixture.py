"""The sources of a mixture, as a dataset's configuration gives them: `dataset.mix.NAME.path=...`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from reallm.errors import ConfigError, did_you_mean

MIX = "mix"
"""The field of a dataset's configuration with the sources of a mixture, by name."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class MixSource:
    """A source of a mixture.

    Args:
        path: its rows, like `train_path`.
        weight: its share of the samples of an epoch, relative to the others; None in all sources: its share of all
            samples.
        format: format of its rows; None: that of the dataset's configuration.
        columns: names of its columns; empty: those of the dataset's configuration.
    """

    path: Any
    weight: float | None = None
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


def mix_sources(config: Any) -> dict[str, MixSource]:
    """The sources of a dataset's configuration, by name; none if it has no mixture.

    Raises:
        ConfigError: a source has a wrong name, key or weight; names the key as `mix.NAME.weight`.
    """
    given = getattr(config, MIX, None) or {}
    sources = {str(name): _source(str(name), values) for name, values in given.items()}
    weighted = [name for name, source in sources.items() if source.weight is not None]
    for name in sources:
        if weighted and name not in weighted:
            raise ConfigError(f"{MIX}.{name}.weight is missing, but source '{weighted[0]}' has one; give all or none")
    return sources


def _source(name: str, values: Any) -> MixSource:
    key = f"{MIX}.{name}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{key}: the name of a source must consist of letters, digits, _ and -")
    if not isinstance(values, Mapping):
        raise ConfigError(f"{key}={values!r} is not a source; give {name}.path=... and, if you like, {name}.weight=...")
    known = [item.name for item in fields(MixSource)]
    for one in values:
        if one not in known:
            hint = did_you_mean(str(one), known) or f"; a source has {', '.join(known)}"
            raise ConfigError(f"{key}.{one} is unknown{hint}")
    if values.get("path") is None:
        raise ConfigError(f"{key}.path is required: the rows of the source '{name}'")
    weight = values.get("weight")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if weight is not None and not (is_number and 0 < weight < math.inf):
        raise ConfigError(f"{key}.weight={weight!r} must be a number above 0")
    if not isinstance(values.get("format"), str | None):
        raise ConfigError(f"{key}.format={values['format']!r} must be the name of a format")
    columns = values.get("columns") or {}
    if not isinstance(columns, Mapping) or not all(isinstance(one, str) for one in columns.values()):
        raise ConfigError(f"{key}.columns={columns!r} must be a mapping; give {key}.columns.KEY=COLUMN")
    return MixSource(values["path"], weight, values.get("format"), dict(columns))
