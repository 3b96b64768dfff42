"""Reads rows that Python gives: from a function, named or handed over, or as a list."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

from reallm.arguments import as_path
from reallm.data.readers.record import Origin, Record, Records
from reallm.data.readers.tables import without_nulls
from reallm.errors import DataError, did_you_mean, kind_of, one_line

Builder: TypeAlias = Callable[[], Iterable[Mapping[str, Any]]]


def read_list(rows: Sequence[Mapping[str, Any]]) -> Records:
    """Rows of a list, or of a dataset of the `datasets` library."""
    for number, value in enumerate(_without_filled_in(rows)):
        place = f"rows[{number}]"
        yield Record(value, place, place)


def read_reference(module: str, name: str) -> Records:
    """Rows of a function that is given by name."""
    yield from read_function(_load(module, name), f"{module}:{name}")


def read_function(build: Builder, name: str) -> Records:
    """Rows that a function returns or yields."""
    origin = Origin(name, name)
    try:
        built = build()
        if isinstance(built, str | bytes | Mapping) or not isinstance(built, Iterable):
            raise DataError(f"{name}: returned {kind_of(built)}, wanted an iterable of mappings, one a row")
        for number, value in enumerate(_without_filled_in(built), 1):
            yield origin.at_row(number, value)
    except DataError:
        raise
    except Exception as error:  # the user's code may raise anything; name it
        raise DataError(f"{name}: raised {type(error).__name__}: {one_line(error)}") from error


def _without_filled_in(rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    """The rows; those of a dataset of the `datasets` library without the nulls that it puts into objects."""
    if type(rows).__module__.partition(".")[0] != "datasets":
        return rows
    return ({key: without_nulls(value) for key, value in row.items()} for row in rows)


def _load(module: str, name: str) -> Builder:
    """The function `name` of an importable module, or of a Python file.

    Naming a function in a configuration runs its code, as an import would: it is the user's code. Data files cannot
    name one.
    """
    source = f"{module}:{name}"
    try:
        loaded = _load_file(as_path(module, DataError)) if module.endswith(".py") else importlib.import_module(module)
    except Exception as error:  # this runs the user's code, which may raise anything
        hint = "; a file is given as path/to/file.py:function" if isinstance(error, ModuleNotFoundError) else ""
        raise DataError(
            f"{source}: cannot import '{module}': {type(error).__name__}: {one_line(error)}{hint}"
        ) from error
    if not hasattr(loaded, name):
        raise DataError(f"{source}: '{module}' has no function '{name}'{did_you_mean(name, vars(loaded))}")
    function = getattr(loaded, name)
    if not callable(function):
        raise DataError(f"{source}: '{name}' of '{module}' is not a function")
    return function


def _load_file(path: Path) -> ModuleType:
    name = f"reallm_rows_{path.stem}"
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # as an import does: dataclasses look up their module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
