"""The dataflow graph of an algorithm, put in order: a call runs after the calls that write the keys it reads."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

from reallm.algorithms.spec import ModelFunctionCall
from reallm.errors import PluginError


def execution_order(graph: Sequence[ModelFunctionCall]) -> list[ModelFunctionCall]:
    """The calls in an order that respects their keys; keys that no call writes come with the data.

    Raises:
        PluginError: two calls have one name or write the same key, or calls wait for each other in a circle.
    """
    calls: dict[str, ModelFunctionCall] = {}
    writers: dict[str, str] = {}
    for call in graph:
        if call.name in calls:
            raise PluginError(f"two calls of the algorithm are named '{call.name}'")
        calls[call.name] = call
        for key in call.outputs:
            if key in writers:
                raise PluginError(f"calls '{writers[key]}' and '{call.name}' of the algorithm both write '{key}'")
            writers[key] = call.name
    waits_for = {call.name: [writers[key] for key in call.inputs if key in writers] for call in graph}
    try:
        return [calls[name] for name in TopologicalSorter(waits_for).static_order()]
    except CycleError as error:
        raise PluginError(f"calls of the algorithm wait for each other: {' <- '.join(error.args[1])}") from error
