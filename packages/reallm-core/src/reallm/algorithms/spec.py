"""What a plugin says of an algorithm. Imports no torch: discovery reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from reallm.plugins.lazy import TypeOrPath, resolve


@dataclass(frozen=True)
class ModelFunctionCall:
    """One node of the dataflow graph: what `role`'s model does, from which keys of the batch to which.

    Edges follow from the keys: a call that reads a key runs after the call that writes it.
    """

    name: str
    role: str
    kind: Literal["generate", "inference", "train_step"]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Algorithm:
    """An algorithm: its configuration dataclass, its graph, and for each role the interface that does the work."""

    config: TypeOrPath
    graph: tuple[ModelFunctionCall, ...]
    interfaces: dict[str, TypeOrPath]
    description: str = ""

    def config_class(self) -> Any:
        """The experiment's configuration dataclass, imported now."""
        return resolve(self.config)

    def interface_class(self, role: str) -> Any:
        """The interface class of a role, imported now."""
        return resolve(self.interfaces[role])
