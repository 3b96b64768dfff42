"""Imports from the distribution `reallm-devkit`, which need not be installed."""

from __future__ import annotations

import importlib
from types import ModuleType

from reallm.errors import PluginError

PACKAGE = "reallm_devkit"


class DevkitMissingError(PluginError, ImportError):
    """Raised if `reallm-devkit` is not installed: one line for a command's user, and an `ImportError` for importers."""


def import_devkit(module: str, needed_by: str) -> ModuleType:
    """Import a module of `reallm_devkit`, by its full name.

    Raises:
        DevkitMissingError: reallm-devkit is not installed; says what needs it and what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != PACKAGE:
            raise
        raise DevkitMissingError(f"{needed_by} needs reallm-devkit; pip install reallm-devkit") from None
