"""The kit of each kind of plugin, as a reference, so that a kit is imported only when it is used."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from reallm.errors import ConfigError
from reallm.plugins.kinds import KINDS
from reallm.references import resolve
from reallm_devkit.testing.kit import Kit

KITS = MappingProxyType(
    {
        "dataset": "reallm_devkit.testing.datasets.kit:DatasetKit",
        "family": "reallm_devkit.testing.families.kit:FamilyKit",
        "logger": "reallm_devkit.testing.loggers.kit:LoggerKit",
        "algorithm": "reallm_devkit.testing.algorithms.kit:AlgorithmKit",
        "callback": "reallm_devkit.testing.callbacks.kit:CallbackKit",
    }
)
"""Kind of plugin -> `"module:class"` of its kit. Other kinds have no kit yet."""


def kit_class(kind: str) -> type[Kit[Any]]:
    """The kit for plugins of a kind.

    Raises:
        ConfigError: if that kind has no kit.
    """
    assert kind in KINDS, kind
    if kind not in KITS:
        raise ConfigError(
            f"there is no conformance kit for {KINDS[kind].plural} yet; there is one for {_kinds_with_kit()}"
        )
    found: type[Kit[Any]] = resolve(KITS[kind])
    return found


def _kinds_with_kit() -> str:
    """`datasets, families and loggers`."""
    *first, last = (KINDS[kind].plural for kind in KITS)
    return f"{', '.join(first)} and {last}"
