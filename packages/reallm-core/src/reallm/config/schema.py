"""The schema of a configuration dataclass: groups of keys with type, default and help. Imports no torch."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reallm.config.args import DATASET_KEY, CallArgs
from reallm.config.dataset import config_class as dataset_config_class
from reallm.errors import ConfigError, PluginError
from reallm.field_types import check_fields
from reallm.options import REQUIRED, default_of, is_missing


@dataclass(frozen=True)
class Key:
    """One value of a configuration: `optimizer.lr`, its type, default and help line."""

    name: str
    type: Any
    default: Any
    help: str

    @property
    def leaf(self) -> str:
        """The last part of the name: `lr` of `optimizer.lr`."""
        return self.name.rpartition(".")[2]

    @property
    def required(self) -> bool:
        """Whether the user must give a value."""
        return is_missing(self.default)


@dataclass(frozen=True)
class Group:
    """The keys of one dataclass: the configuration itself (with an empty name) or one of its fields (`optimizer`).

    `dataset` is the dataset's name if the group belongs to a dataset; `problem` says why its keys are unknown.
    """

    name: str
    help: str
    cls: type | None
    keys: tuple[Key, ...]
    dataset: str | None = None
    problem: str = ""


def groups(config_class: type, chosen: Mapping[str, str] | None = None, tolerate: bool = False) -> list[Group]:
    """All groups of keys of a configuration dataclass; groups of nested dataclasses come first.

    Args:
        config_class: the dataclass; its fields are values, dataclasses, or datasets (`dataset_option`).
        chosen: name of the dataset for each dataset field that does not have the default.
        tolerate: describe a dataset that cannot be loaded as a group with a `problem`, instead of raising PluginError.
    """
    return list(_walk(config_class, "", "", chosen or {}, tolerate))


def _walk(
    cls: type, name: str, about: str, chosen: Mapping[str, str], tolerate: bool, dataset: str | None = None
) -> Iterator[Group]:
    prefix = f"{name}." if name else ""
    hints = typing.get_type_hints(cls)
    keys: list[Key] = []
    declared = inspect.get_annotations(cls)
    # fields that a class adds come before inherited ones: the model of an algorithm comes first
    for item in sorted(dataclasses.fields(cls), key=lambda item: item.name not in declared):
        if not item.init:
            continue
        key, text, hint = prefix + item.name, item.metadata.get("help", ""), hints[item.name]
        if DATASET_KEY in item.metadata:
            choice = chosen.get(key, item.metadata[DATASET_KEY])
            try:
                yield from _walk(dataset_config_class(choice), key, text, chosen, tolerate, dataset=choice)
            except PluginError as error:
                if not tolerate:
                    raise
                yield Group(key, text, None, (), choice, str(error))
        elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _walk(hint, key, text, chosen, tolerate)
        else:
            keys.append(Key(key, hint, _default(item), text))
    keys.sort(key=lambda key: dataset is None or key.leaf != "name")  # a dataset's name comes first
    yield Group(name, about, cls, tuple(keys), dataset)


def _default(item: dataclasses.Field) -> Any:
    default = default_of(item)
    return REQUIRED if default is dataclasses.MISSING else default


def dataset_fields(config_class: type) -> dict[str, str]:
    """Name of each dataset field -> name of its default dataset."""
    return {
        item.name: item.metadata[DATASET_KEY]
        for item in dataclasses.fields(config_class)
        if DATASET_KEY in item.metadata
    }


def call_fields(config_class: type) -> list[str]:
    """Names of the fields that say where a call is computed."""
    hints = typing.get_type_hints(config_class)
    return [item.name for item in dataclasses.fields(config_class) if hints[item.name] is CallArgs]


def check_values(config: Any, name: str = "") -> None:
    """Check types, choices and required values of a configuration object, nested dataclasses included.

    Raises:
        ConfigError: a required value is missing, or a value has the wrong type or is not among its choices; names the
            key.
    """
    check_fields(config, name)
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        key, value = f"{name}.{item.name}" if name else item.name, getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            check_values(value, key)
        elif is_missing(value):
            raise ConfigError(missing_text(Key(key, hints[item.name], value, item.metadata.get("help", ""))))


def in_group(name: str, cls: type, error: Exception) -> str:
    """The message of an error raised by a nested dataclass, with the full key: `lr=0 ...` -> `optimizer.lr=0 ...`."""
    message = str(error)
    if not name or message.startswith(f"{name}."):
        return message
    first = re.match(r"\w*", message)
    assert first is not None
    known = first[0] in (item.name for item in dataclasses.fields(cls))
    return f"{name}.{message}" if known else f"{name}: {message}"


def missing_text(key: Key) -> str:
    """The error message for a required key that is not given."""
    return f"{key.name} is required" + (f": {key.help}" if key.help else "")
