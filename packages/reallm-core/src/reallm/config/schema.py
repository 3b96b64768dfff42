"""The schema of a configuration dataclass: groups of keys with type, default and help. Imports no torch."""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from reallm.config.args import DATASET_KEY
from reallm.config.dataset import config_class as dataset_config_class
from reallm.errors import ConfigError, PluginError, did_you_mean
from reallm.options import REQUIRED


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
        return isinstance(self.default, str) and self.default == REQUIRED


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
    if item.default is not dataclasses.MISSING:
        return item.default
    if item.default_factory is not dataclasses.MISSING:
        return item.default_factory()
    return REQUIRED


def dataset_fields(config_class: type) -> dict[str, str]:
    """Name of each dataset field -> name of its default dataset."""
    return {
        item.name: item.metadata[DATASET_KEY]
        for item in dataclasses.fields(config_class)
        if DATASET_KEY in item.metadata
    }


def type_text(hint: Any) -> str:
    """A type as shown by `--help`: `float`, `int|null`, `cosine|linear|constant`, `list[str]`."""
    if hint is None or hint is type(None):
        return "null"
    if hint is Any:
        return "any"
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return "|".join(type_text(arg) for arg in args)
    if origin is Literal:
        return "|".join(value_text(arg) for arg in args)
    if origin is not None:
        return f"{origin.__name__}[{', '.join('...' if arg is ... else type_text(arg) for arg in args)}]"
    return getattr(hint, "__name__", str(hint))


def value_text(value: Any) -> str:
    """A value as it is written on the command line: `null`, `true`, `[jsonl,tensorboard]`, `2e-05`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(value_text(item) for item in value)}]"
    return str(value)


def allowed_text(hint: Any) -> str:
    """The values of a type as the end of "it must be ...": `a number`, `one of a, b`."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(allowed_text(arg) for arg in get_args(hint))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(value_text(value) for value in get_args(hint))}"
    if is_list(hint):
        return "a list"
    if (get_origin(hint) or hint) is dict:
        return "a mapping, such as {a: 1}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return words.get(hint, type_text(hint))


def literals(hint: Any) -> list[str]:
    """The choices of a `Literal` or an optional one; empty for other types."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else [hint]
    return [value_text(value) for member in members if get_origin(member) is Literal for value in get_args(member)]


def is_list(hint: Any) -> bool:
    """Whether the type is a list or tuple."""
    return (get_origin(hint) or hint) in (list, tuple)


def is_mapping(hint: Any) -> bool:
    """Whether the type's values may be mappings."""
    return hint is Any or (get_origin(hint) or hint) is dict


def is_optional(hint: Any) -> bool:
    """Whether the type allows `null`."""
    return hint is Any or type(None) in get_args(hint)


def is_text(hint: Any) -> bool:
    """Whether the type is text, whose values are taken literally (`007` stays `007`) and not parsed as YAML."""
    options = [arg for arg in get_args(hint) if arg is not type(None)] if is_optional(hint) else [hint]
    return options == [str]


def check_values(config: Any, name: str = "") -> None:
    """Check required values and choices of a configuration object, nested dataclasses included.

    Raises:
        ConfigError: a required value is missing, or a value is not among its choices; names the key.
    """
    prefix = f"{name}." if name else ""
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):
        key, value = prefix + item.name, getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            check_values(value, key)
        elif isinstance(value, str) and value == REQUIRED:
            raise ConfigError(missing_text(Key(key, hints[item.name], value, item.metadata.get("help", ""))))
        elif get_origin(hints[item.name]) is Literal and value not in get_args(hints[item.name]):
            choices = [value_text(choice) for choice in get_args(hints[item.name])]
            raise ConfigError(
                f"{key}={value_text(value)} is not one of {', '.join(choices)}{did_you_mean(str(value), choices)}"
            )


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
