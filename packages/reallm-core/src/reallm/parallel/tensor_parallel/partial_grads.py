"""The parameters that get only partial gradients under tensor parallelism, and the ranks to sum them over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from reallm.model.moe.layer import MoEMLP
from reallm.model.parameter_names import block_layers, layer_number
from reallm.model.sharding import Shard, has_partial_grad
from reallm.model.transformer import Transformer
from reallm.parallel.sharding import BoxesByRank


def partial_grad_groups(
    model: Transformer,
    shards: Mapping[str, Shard | None],
    boxes: BoxesByRank,
    tp_rank: int,
    *,
    sequence_parallel: bool = False,
) -> dict[str, list[int]]:
    """Parameter -> the tensor-parallel ranks over which its gradients are summed, where each has a partial one:

    - A box that several ranks hold, as with few KV heads: each rank uses it with different query heads.
    - A whole parameter of a layer that acts on a part of its input's features, such as a norm of each head.
    - With sequence parallelism, a whole parameter of a block: each rank sees different tokens. Routers see all tokens;
      biases behind a row-parallel product do not.
    """
    groups: dict[str, list[int]] = {}
    for name, box in boxes[tp_rank].items():
        holders = [rank for rank, of_rank in enumerate(boxes) if of_rank[name] == box]
        modules = _modules_of(model, name)
        partial_grad = any(map(has_partial_grad, modules))
        sees_some_tokens = (
            sequence_parallel
            and layer_number(name) in block_layers(model.config)
            and (not any(isinstance(module, MoEMLP) for module in modules) or _is_row_parallel(modules[-1]))
        )
        if len(holders) > 1 and (shards[name] is not None or partial_grad or sees_some_tokens):
            groups[name] = holders
    return groups


def _is_row_parallel(module: nn.Module) -> bool:
    return getattr(module, "split", None) == "row"


def _modules_of(model: nn.Module, name: str) -> Sequence[nn.Module]:
    """The modules that contain a parameter, from its layer down to the module that holds it directly."""
    names = name.split(".")[:-1]
    return [model.get_submodule(".".join(names[:depth])) for depth in range(2, len(names) + 1)]
