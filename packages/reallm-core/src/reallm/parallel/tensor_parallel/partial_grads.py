"""Tensor parallelism: the layers of a stage split among the ranks of `mesh.tp`, as they say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from reallm.model.moe.layer import MoEMLP
from reallm.model.parameter_names import block_layers, layer_number
from reallm.model.sharding import Shard, has_partial_grad
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Mesh
from reallm.parallel.tensor_parallel.apply import Parts, _parts


def gradient_groups(model: Transformer, mesh: Mesh) -> dict[str, list[int]]:
    """Parameters of which each rank's gradient is a summand, and the ranks over which they are to be added up."""
    parts, ranks = _parts(model, mesh), mesh.layout.tp_ranks(mesh.here)
    by_tokens = bool(vars(model)["sequence_parallel"])
    found = partial_grad_groups(model, model.parameter_shards(), parts, mesh.here.tp, sequence_parallel=by_tokens)
    return {name: [ranks[place] for place in places] for name, places in found.items()}


def partial_grad_groups(
    model: Transformer,
    shards: Mapping[str, Shard | None],
    parts: Parts,
    rank: int,
    *,
    sequence_parallel: bool = False,
) -> dict[str, list[int]]:
    """The same for one of any ranks, by their numbers among each other.

    - A part that several ranks hold, as of few KV heads: each computes with it for its own part of the others.
    - A whole parameter of a layer that sees a part, as of a norm for each head.
    - With sequence parallelism, a whole parameter of a block: each rank sees its own tokens. Routers see them all.
    """
    blocks, found = block_layers(model.config), {}
    for name, box in parts[rank].items():
        holders = [other for other, part in enumerate(parts) if part[name] == box]
        owners = list(_owners(model, name))
        partial_grad = any(map(has_partial_grad, owners))
        sees_own_tokens = (
            sequence_parallel
            and layer_number(name) in blocks
            and not any(isinstance(owner, MoEMLP) for owner in owners)
        )
        if len(holders) > 1 and (shards[name] is not None or partial_grad or sees_own_tokens):
            found[name] = holders
    return found


def _owners(model: nn.Module, name: str) -> Sequence[nn.Module]:
    """The modules that a parameter is in, from the layer to the one that has it."""
    names = name.split(".")[:-1]
    return [model.get_submodule(".".join(names[:depth])) for depth in range(2, len(names) + 1)]
