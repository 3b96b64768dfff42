"""Checks of arguments of public functions, whose errors name the argument and its value. Imports no torch."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

from reallm.errors import ConfigError, ReallmError, cut, did_you_mean, kind_of, short_reason, with_article
from reallm.printable import printable_line

P = ParamSpec("P")
T = TypeVar("T")
MAX_LISTED = 8
"""The most fields that an error lists."""


def named_arguments(**elsewhere: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorator that makes an unknown keyword argument a ConfigError, which suggests the right name.

    Args:
        elsewhere: names that other libraries have for arguments of this function: `torch_dtype="dtype"`.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        parameters = [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            check_names(function.__name__, kwargs, parameters, elsewhere)
            return function(*args, **kwargs)

        return checked

    return decorate


class NamedFields:
    """Base class of dataclasses whose constructor answers an unknown field with a ConfigError, not a TypeError."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check the names; the constructor that dataclasses write does the rest."""
        for name in kwargs:
            if name not in cls.__dataclass_fields__:  # type: ignore[attr-defined]
                names = [item.name for item in dataclasses.fields(cls)]  # type: ignore[arg-type]
                raise ConfigError(f"{cls.__name__} has no field '{name}'{cls._hint(name, names)}")
        return super().__new__(cls)

    @classmethod
    def _hint(cls, name: str, names: Sequence[str]) -> str:
        """The end of the message: what was probably meant by `name`, of the fields `names`."""
        listed = f"it has: {', '.join(names)}" if len(names) <= MAX_LISTED else f"see help({cls.__name__})"
        return did_you_mean(name, names) or f"; {listed}"


def check_names(
    function: str, given: Iterable[str], parameters: Sequence[str], elsewhere: Mapping[str, str] | None = None
) -> None:
    """Check that a function has the keyword arguments that it is given.

    Args:
        function: its name.
        given: names of the arguments that it is given.
        parameters: names of those that it has.
        elsewhere: names that other libraries have for them.

    Raises:
        ConfigError: it has no such argument; suggests the right one.
    """
    for name in given:
        if name not in parameters:
            meant = (elsewhere or {}).get(name)
            hint = f"; did you mean '{meant}'?" if meant else did_you_mean(name, parameters)
            listed = "" if hint else f"; it has: {', '.join(parameters)}"
            raise ConfigError(f"{function} has no argument '{name}'{hint}{listed}")


def check_path(name: str, value: Any) -> str | Path:
    """A path given as text or a `Path`.

    Raises:
        ConfigError: it is something else, or empty.
    """
    if isinstance(value, os.PathLike) and not isinstance(value, Path):
        value = os.fspath(value)
    if not isinstance(value, str | Path):
        raise ConfigError(f"{name} must be a path as text or pathlib.Path, not {kind_of(value)}")
    if isinstance(value, str) and not value.strip():
        raise ConfigError(f"{name} is empty; it must be a path")
    return value


def as_path(value: str | Path, error: type[ReallmError] = ConfigError) -> Path:
    """A path that the system can look up, whether or not anything is there, with `~` expanded.

    Raises:
        ReallmError: of the class `error`: it is too long, there is no such user, or a folder above it is locked.
    """
    try:
        path = Path(value).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as raised:
        shown = cut(printable_line(str(value)), 100)
        raise error(f"the path {shown} cannot be used ({short_reason(raised)}); give another one") from raised
    return path


def check_count(name: str, value: Any, at_least: int = 1) -> int:
    """A whole number.

    Raises:
        ConfigError: it is something else, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(f"{name}={value!r} must be a whole number")
    if value < at_least:
        raise ConfigError(f"{name}={value} must be at least {at_least}")
    return int(value)


def check_items(name: str, values: Any, cls: type[T]) -> list[T]:
    """A list of texts or of whole numbers, given as any iterable of them.

    Raises:
        ConfigError: it is something else; names the argument.
    """
    what = "strings" if cls is str else "whole numbers"
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ConfigError(f"{name}={values!r} must be a list of {what}; write {name}=[{values!r}]")
    items = [value.item() if hasattr(value, "item") else value for value in values]
    for item in items:
        if not isinstance(item, cls) or isinstance(item, bool):
            raise ConfigError(f"{name} must be a list of {what}; {item!r} is not one")
    return items


def check_instance(name: str, value: Any, cls: type[T], remedy: str = "") -> T:
    """An instance of a class.

    Args:
        name: name of the argument.
        value: its value.
        cls: class that it must have.
        remedy: the end of the message, such as `write gather(samples)`.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(value, cls):
        must_be = f"{name} must be {with_article(cls.__name__)}, not {kind_of(value)}"
        raise ConfigError(f"{must_be}; {remedy}" if remedy else must_be)
    return value
