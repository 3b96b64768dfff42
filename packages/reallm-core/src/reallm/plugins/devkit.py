"""The distribution `reallm-devkit`, which the core uses where it is installed, and does without elsewhere."""

from __future__ import annotations

import importlib
from types import ModuleType

from reallm.errors import PluginError

PACKAGE = "reallm_devkit"


class DevkitMissingError(PluginError, ImportError):
    """`reallm-devkit` is not installed. A line for the command's user, and an `ImportError` for who imports it."""


def import_devkit(module: str, needed_by: str) -> ModuleType:
    """A module of `reallm_devkit`, by its full name.

    Raises:
        DevkitMissingError: reallm-devkit is not installed; says what needs it and what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != PACKAGE:
            raise
        raise DevkitMissingError(f"{needed_by} needs reallm-devkit; pip install reallm-devkit") from None
