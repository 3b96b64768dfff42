"""References to classes and functions that are imported only when they are used."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reallm.errors import ConfigError, PluginError

TypeOrPath = str | type
"""A class, or `"package.module:Class"`, which is not imported until it is resolved."""
FUNCTION = re.compile(r"(?!hub:)(?P<module>.+\.py|[A-Za-z_]\w*(?:\.\w+)*):(?P<name>[A-Za-z_]\w*)")
"""`"package.module:function"` or `"path/to/file.py:function"`, as settings name functions; `hub:name` is a dataset."""


def names_code(text: str) -> bool:
    """Whether a setting names a function of Python, and so runs its module: `rows.py:load`, `verl:package.module:f`."""
    prefix, _, rest = text.partition(":")
    return bool(FUNCTION.fullmatch(text) or (prefix != "hub" and FUNCTION.fullmatch(rest)))


def resolve(reference: Any) -> Any:
    """The object that `"package.module:name"` refers to; other values are returned unchanged.

    Raises:
        PluginError: the module or the name in it does not exist; names the reference.
    """
    if not isinstance(reference, str):
        return reference
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"cannot import '{reference}': {error}") from error


def location_of(function: Callable[..., Any]) -> str:
    """The location of a Python function, as text.

    Raises:
        ConfigError: other processes cannot import it, since it is not at the top level of a module or a file.
    """
    name: Any = getattr(function, "__qualname__", "")
    module: Any = getattr(function, "__module__", None)
    if not name.isidentifier() or module is None:
        raise ConfigError(
            f"function {name or function!r}: other processes cannot import it; define it with def, at the top "
            "level of a module or a file"
        )
    if module != "__main__":
        return f"{module}:{name}"
    code = getattr(function, "__code__", None)
    if code is None or not Path(code.co_filename).is_file():
        raise ConfigError(f"function {name}: other processes cannot import it; put it into a file")
    return f"{Path(code.co_filename).absolute()}:{name}"
