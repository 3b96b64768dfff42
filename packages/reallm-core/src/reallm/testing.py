"""The old name of `reallm_devkit`, the conformance kit. Deprecated; to be removed with hook API 2.0."""

from __future__ import annotations

from typing import Any

from reallm.deprecation import deprecated
from reallm.plugins.devkit import import_devkit


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # Python looks up `__path__` and other names
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    kit = import_devkit("reallm_devkit", needed_by=__name__)
    if name not in kit.__all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    deprecated(f"the module '{__name__}'", instead="'reallm_devkit' of reallm-devkit", since="1.1", removed_in="2.0")
    return getattr(kit, name)
