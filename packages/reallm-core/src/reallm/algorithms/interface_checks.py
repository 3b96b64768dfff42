"""Checks that an interface class fits the calls of a graph: its constructor, its methods and their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from reallm.algorithms.graph import Graph
from reallm.errors import PluginError
from reallm.specs import Algorithm

ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "generate": ("model", "batch", "context"),
    "inference": ("model", "batch", "context"),
    "train_step": ("engine", "batch", "context"),
    "reward": ("batch", "context"),
    "eval_metrics": ("batch", "context"),
}
"""Method of an interface -> its arguments."""


def check_interfaces(algorithm: Algorithm, graph: Graph) -> None:
    """Check that the interface class of each role can be constructed and has the methods that the graph calls.

    Raises:
        PluginError: a class takes no configuration, lacks a method, or a method takes other arguments.
    """
    for role in graph.all_roles:
        cls = algorithm.interface_class(role)
        if not _takes(cls, ("config",)):
            raise PluginError(
                f"{cls.__qualname__}, the interface of '{role}', does not take the algorithm's configuration; since "
                "hook API 1.3 interfaces are constructed with it: def __init__(self, config)"
            )
    for call in graph.calls:
        cls = algorithm.interface_class(call.role)
        if not callable(getattr(cls, call.kind, None)):
            raise PluginError(
                f"the call '{call.name}' needs the method '{call.kind}', which the interface of '{call.role}', "
                f"{cls.__qualname__}, does not have"
            )
        for method in (call.kind, "eval_metrics"):
            if callable(getattr(cls, method, None)) and not _takes(getattr(cls, method), ("self", *ARGUMENTS[method])):
                raise PluginError(
                    f"{cls.__qualname__}.{method}, of the interface of '{call.role}', does not take the arguments of "
                    f"hook API 1.3: def {method}(self, {', '.join(ARGUMENTS[method])})"
                )


def _takes(function: Any, arguments: Sequence[str]) -> bool:
    """Whether a function can be called with as many arguments by position."""
    try:
        inspect.signature(function).bind(*arguments)
    except ValueError:  # a builtin, of which Python knows no signature
        return True
    except TypeError:
        return False
    return True
