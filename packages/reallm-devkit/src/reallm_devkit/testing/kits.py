"""The kit of each kind of plugin, as a reference, so that a kit is imported only when it is used."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from reallm.references import resolve
from reallm_devkit.testing.kit import Kit

KITS = MappingProxyType(
    {
        "dataset": "reallm_devkit.testing.datasets.kit:DatasetKit",
        "family": "reallm_devkit.testing.families.kit:FamilyKit",
        "algorithm": "reallm_devkit.testing.algorithms.kit:AlgorithmKit",
        "logger": "reallm_devkit.testing.loggers.kit:LoggerKit",
        "callback": "reallm_devkit.testing.callbacks.kit:CallbackKit",
        "reward": "reallm_devkit.testing.rewards.kit:RewardKit",
        "implementation": "reallm_devkit.testing.implementations.kit:ImplementationKit",
    }
)
"""Kind of plugin -> `"module:class"` of its kit; there is one for each of `reallm.plugins.kinds.KINDS`."""


def kit_class(kind: str) -> type[Kit[Any]]:
    """The kit for plugins of a kind."""
    found: type[Kit[Any]] = resolve(KITS[kind])
    return found
