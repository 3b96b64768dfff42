"""References to classes that are imported only when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from reallm.errors import PluginError

TypeOrPath = str | type
"""A class, or `"package.module:Class"`, which is not imported until it is resolved."""


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
