"""Checks roles whose weights follow those of a trained one, before anything is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from reallm.algorithms.graph import Graph
from reallm.errors import ConfigError
from reallm.model.config import ReaLModelConfig
from reallm.model.parameters import parameter_shapes


def check_updates(graph: Graph, models: Mapping[str, ReaLModelConfig]) -> None:
    """Check that a model has the parameters of the one that its weights are to follow.

    Args:
        graph: graph of the algorithm.
        models: architecture of each role's model.

    Raises:
        ConfigError: the parameters differ; names both roles and the first one.
    """
    for call in graph.train_calls:
        for update in call.updates:
            if models[call.role].lora is not None:
                raise ConfigError(
                    f"{call.role}.lora: the weights of '{update.target}' are to follow those of '{call.role}', of "
                    f"which its adapters alone change; leave out {call.role}.lora, or keep '{update.target}' as it is"
                )
            trained, target = (parameter_shapes(models[role]) for role in (call.role, update.target))
            for name in dict.fromkeys([*trained, *target]):
                one, other = trained.get(name), target.get(name)
                if one != other:
                    raise ConfigError(
                        f"{update.target}.path: the weights of '{update.target}' follow those of '{call.role}', and "
                        f"need the same shapes, but '{name}' {_has(one)} in '{call.role}' and {_has(other)} in "
                        f"'{update.target}'; give both checkpoints of the same architecture"
                    )


def _has(shape: tuple[int, ...] | None) -> str:
    return "does not exist" if shape is None else f"has the shape {list(shape)}"
