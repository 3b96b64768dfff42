"""Tensor parallelism: the layers of a stage split among the ranks of `mesh.tp`, as they say of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from reallm.errors import ConfigError
from reallm.model.moe import MoEMLP
from reallm.model.shard import Shard
from reallm.model.transformer import Transformer
from reallm.parallel.collectives import GroupPeers
from reallm.parallel.mesh import Mesh
from reallm.parallel.placement import stage_parameters, tp_box
from reallm.parallel.split import Parts, split_among


def split_layers(model: Transformer, mesh: Mesh, *, sequence_parallel: bool = False) -> None:
    """Let a network that has the layers of this rank's stage, whole, be this rank's part of them.

    Args:
        model: `Transformer(config, layers_here(config, mesh))`.
        mesh: of a layout with tp > 1.
        sequence_parallel: whether each rank has a part of the tokens between its layers, in training.

    Raises:
        ConfigError: the layout does not fit the model, or a layer cannot be split so.
    """
    if sequence_parallel:
        _check_tokens_can_be_dealt_out(model)
    shards, splits = model.parameter_shards(), model.module_splits()
    split_among(model, GroupPeers(mesh.tp), _parts(model, mesh), shards, splits, sequence_parallel=sequence_parallel)
    model.sequence_parallel = sequence_parallel  # type: ignore[assignment] # modules declare nothing but tensors


def gradient_groups(model: Transformer, mesh: Mesh) -> dict[str, list[int]]:
    """Parameters of which each rank's gradient is a summand, and the ranks over which they are to be added up."""
    parts, ranks = _parts(model, mesh), mesh.layout.tp_ranks(mesh.here)
    by_tokens = bool(vars(model)["sequence_parallel"])
    found = summands(model, model.parameter_shards(), parts, mesh.here.tp, sequence_parallel=by_tokens)
    return {name: [ranks[place] for place in places] for name, places in found.items()}


def summands(
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
    blocks, found = range(1, model.config.n_layers + 1), {}
    for name, box in parts[rank].items():
        holders = [other for other, part in enumerate(parts) if part[name] == box]
        owners = list(_owners(model, name))
        sees_part = any(getattr(owner, "sees_part", False) for owner in owners)
        sees_own_tokens = (
            sequence_parallel
            and int(name.split(".")[1]) in blocks
            and not any(isinstance(owner, MoEMLP) for owner in owners)
        )
        if len(holders) > 1 and (shards[name] is not None or sees_part or sees_own_tokens):
            found[name] = holders
    return found


def _parts(model: Transformer, mesh: Mesh) -> Parts:
    layout, infos = mesh.layout, stage_parameters(model.config, mesh.layout.pp, mesh.here.pp)
    return [{info.name: tp_box(info, layout.tp, tp) for info in infos} for tp in range(layout.tp)]


def _owners(model: nn.Module, name: str) -> Sequence[nn.Module]:
    """The modules that a parameter is in, from the layer to the one that has it."""
    names = name.split(".")[:-1]
    return [model.get_submodule(".".join(names[:depth])) for depth in range(2, len(names) + 1)]


def _check_tokens_can_be_dealt_out(model: Transformer) -> None:
    for path, module in model.named_modules():
        cls = type(module)
        if cls.__module__.partition(".")[0] not in ("reallm", "torch"):
            raise ConfigError(
                f"sequence parallelism does not go with {cls.__module__}.{cls.__qualname__} ('{path}'), which may need "
                "all tokens; leave sequence_parallel out"
            )
