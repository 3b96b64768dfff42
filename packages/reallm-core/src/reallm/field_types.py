"""Types of configuration fields: as text for people, and the check of values given in Python. Imports no torch."""

from __future__ import annotations

import dataclasses
import functools
import os
import types
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin

from reallm.errors import ConfigError, did_you_mean, kind_of, with_article
from reallm.options import is_missing


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
    if (get_origin(hint) or hint) in (dict, Mapping):
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


def is_text_or_list(hint: Any) -> bool:
    """Whether the type is a text or a list of texts, as `data/*.jsonl` and `[a.jsonl, b.jsonl]`."""
    return {arg for arg in get_args(hint) if arg is not type(None)} == {str, list[str]}


def item_type(hint: Any) -> Any:
    """The type of the values of a mapping."""
    return get_args(hint)[1] if get_args(hint) and is_mapping(hint) else Any


def check_fields(config: Any, group: str = "") -> None:
    """Check the types of a dataclass instance's fields, which Python does not; nested dataclasses check themselves.

    Numbers of numpy become Python's, and a path for text becomes text. A required
    value that is missing is left to the caller.

    Args:
        config: the instance; may be frozen.
        group: its key, for messages: `optimizer`.

    Raises:
        ConfigError: a value has another type; names key, value and what is allowed.
    """
    cls: type = type(config)
    for name, hint in _type_hints(cls).items():
        value = getattr(config, name)
        if is_missing(value):
            continue
        converted = _converted(value, hint)
        if converted is _WRONG:
            raise ConfigError(
                f"{group}.{name}{_wrong_type(value, hint)}" if group else f"{name}{_wrong_type(value, hint)}"
            )
        if converted is not value:
            object.__setattr__(config, name, converted)


@functools.cache  # resolving the names takes far longer than the check
def _type_hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}


_WRONG = object()


def _converted(value: Any, hint: Any) -> Any:
    """The value as a value of the type, or `_WRONG`; values of types that are not plain data are left alone."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return next((found for arg in get_args(hint) if (found := _converted(value, arg)) is not _WRONG), _WRONG)
    if hint is type(None):
        return None if value is None else _WRONG
    if origin is Literal:
        # True is not 1, although they are equal
        return (
            value
            if any(value is arg or (value == arg and type(value) is type(arg)) for arg in get_args(hint))
            else _WRONG
        )
    if hint is bool:
        return value if isinstance(value, bool) else _WRONG
    if hint in (int, float):
        is_number = isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
        return _WRONG if not is_number else value if isinstance(value, int | float) else hint(value)
    if hint is str:
        return os.fspath(value) if isinstance(value, str | os.PathLike) else _WRONG
    if is_list(hint):
        return value if isinstance(value, list | tuple) else _WRONG
    if (origin or hint) in (dict, Mapping):
        return value if isinstance(value, Mapping) else _WRONG
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _WRONG
    return value


def _wrong_type(value: Any, hint: Any) -> str:
    """The rest of the message for a value of the wrong type: `='1e-5' must be a number, not text`."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        name = hint.__name__
        return f" must be {with_article(name)}, not {kind_of(value)}; write {name}(...)"
    is_plain = value is None or isinstance(value, str | Real)
    shown = f"={value!r}" if is_plain else ""
    if choices := literals(hint):
        or_none = " or None" if is_optional(hint) else ""
        return f"{shown} is not one of {', '.join(choices)}{or_none}{did_you_mean(str(value), choices)}"
    if is_list(hint) and isinstance(value, str):
        return f"{shown} must be a list; write [{value!r}]"
    must_be = f"{shown} must be {allowed_text(hint).replace('null', 'None')}"
    return f"{must_be}, not {kind_of(value)}" if isinstance(value, str) or not is_plain else must_be
