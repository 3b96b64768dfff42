"""A network split among ranks, from outside: each has its part of the parameters, and says what the others must hear.

What layers declare (`split`, `shards`, `over_sharded_dim`) decides where: whole inputs are shared, partial outputs are
added up, a norm over a dim that is split takes its mean over all parts, `vocabulary` puts logits together.
Parts of parameters come as boxes, of all ranks, so that a process can play them all.

Shapes: T packed tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reallm.errors import ConfigError
from reallm.model.layers import Norm, TokenEmbedding
from reallm.model.moe.layer import MoEMLP
from reallm.model.parameter_names import head_weight_name, split_parameter_name
from reallm.model.sharding import Box, Shard
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Mesh
from reallm.parallel.sharding import stage_parameters, tp_box
from reallm.parallel.tensor_parallel.layers import VocabParallel, parallel_norm, split_embedding
from reallm.parallel.tensor_parallel.mappings import (
    GroupPeers,
    Peers,
    all_tokens_shared,
    copy_to_tp_region,
    gather_from_sp_region,
    reduce_from_tp_region,
    reduce_scatter_to_sp_region,
    scatter_to_sp_region,
)

Parts = Sequence[Mapping[str, Box]]
"""By rank: parameter -> its part, in coordinates of the whole."""


def split_among(
    model: Transformer,
    peers: Peers,
    parts: Parts,
    shards: Mapping[str, Shard | None],
    splits: Mapping[str, str],
    *,
    sequence_parallel: bool = False,
) -> None:
    """Let a network be one rank's part of it, in place.

    Args:
        model: whole layers; on the meta device, or with numbers, of which the part is copied.
        peers: the ranks, and which of them this is.
        parts: what each of them has.
        shards: how each parameter is split, `model.parameter_shards()`.
        splits: path of a module -> its `split`, `model.module_splits()`; without effect where no parameter is split.
        sequence_parallel: whether each rank has a part of the tokens between its layers, in training.
    """
    _take_parts(model, parts[peers.rank])
    names = [name for name, shard in shards.items() if shard is not None]
    seams = (_SequenceParallelBoundary if sequence_parallel else _RegionBoundary)(peers)
    for path, module in list(model.named_modules()):
        split = splits.get(path) if any(name.startswith(f"{path}.") for name in names) else None
        if isinstance(module, TokenEmbedding):
            start = parts[peers.rank][f"{path}.weight"].starts[0]
            _compute_by(module, split_embedding(module, peers, start))
        elif isinstance(module, Norm) and module.over_sharded_dim:
            _compute_by(module, parallel_norm(module, peers, _n_copies(path, parts)))
        elif split == "column":
            module.register_forward_pre_hook(_entering(seams.enter))
        elif split is not None:
            if split == "column_row":
                module.register_forward_pre_hook(_entering(seams.enter_with_all_tokens))
            _compute_by(module, _leaving(module, seams))
    blocks = [model.layers[str(number)] for number in model.block_numbers]
    for block in blocks:
        block.register_forward_pre_hook(seams.begin_block)
        block.register_forward_hook(seams.end_block)
    seams.prepare(blocks)
    head = head_weight_name(model.config)
    if not model.config.is_critic and head in parts[0]:
        model.vocabulary = VocabParallel(peers, [part[head].shape[0] for part in parts])
    model.n_kv_heads = max(1, model.config.n_kv_heads // peers.size)
    model.compile_blocker = "tensor parallelism"


class _RegionBoundary:
    """Where computation goes from what all ranks have to parts of it, and back."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self._last: tuple[Tensor, Tensor] | None = None

    def enter(self, x: Tensor) -> Tensor:
        """From whole inputs; once for layers that follow each other with the same input, as queries, keys, values."""
        if self._last is None or self._last[0] is not x:
            self._last = x, self._shared(x)
        return self._last[1]

    def enter_with_all_tokens(self, x: Tensor) -> Tensor:
        """The same where all tokens are here."""
        return copy_to_tp_region(x, self.peers)

    def leave(self, x: Tensor) -> Tensor:
        """From summands of a whole output."""
        return reduce_from_tp_region(x, self.peers)

    def begin_block(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of each block `(x, context, cache)`."""
        self._last = None

    def end_block(self, block: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        """Forward hook of each block: what is kept for its layers may go."""
        self._last = None

    def prepare(self, blocks: Sequence[nn.Module]) -> None:
        """Further hooks."""

    def _shared(self, x: Tensor) -> Tensor:
        return copy_to_tp_region(x, self.peers)


class _SequenceParallelBoundary(_RegionBoundary):
    """Those of sequence parallelism (Korthikanti et al., 2022): between layers each rank has some of the tokens.

    Without gradients, as in generation, all ranks have all tokens.
    """

    def __init__(self, peers: Peers) -> None:
        super().__init__(peers)
        self._n_tokens: int | None = None
        """T of the pack in this block; None where all ranks have all tokens."""

    def leave(self, x: Tensor) -> Tensor:
        return (
            reduce_from_tp_region(x, self.peers)
            if self._n_tokens is None
            else reduce_scatter_to_sp_region(x, self.peers)
        )

    def begin_block(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        super().begin_block(block, args)
        self._n_tokens = args[1].seqs.n_tokens if torch.is_grad_enabled() else None

    def prepare(self, blocks: Sequence[nn.Module]) -> None:
        """Tokens are dealt out before the first block and put together after the last, and around experts, whose router
        sees them all."""
        blocks[0].register_forward_pre_hook(self._deal_out)
        blocks[-1].register_forward_hook(self._put_together, prepend=True)
        for block in blocks:
            for module in block.modules():
                if isinstance(module, MoEMLP):
                    module.register_forward_pre_hook(self._give_all)

    def _shared(self, x: Tensor) -> Tensor:
        if self._n_tokens is None:
            return copy_to_tp_region(x, self.peers)
        return all_tokens_shared(x, self.peers, self._n_tokens)

    def _deal_out(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if self._n_tokens is None else (scatter_to_sp_region(args[0], self.peers), *args[1:])

    def _put_together(self, block: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return out if self._n_tokens is None else gather_from_sp_region(out, self.peers, self._n_tokens)

    def _give_all(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (
            None if self._n_tokens is None else (gather_from_sp_region(args[0], self.peers, self._n_tokens), *args[1:])
        )


def _take_parts(model: nn.Module, own: Mapping[str, Box]) -> None:
    for name, parameter in list(model.named_parameters()):
        box = own[name]
        if box.shape != parameter.shape:
            path, own_name = split_parameter_name(name)
            part = parameter.detach()[box.slices].clone()
            setattr(model.get_submodule(path), own_name, nn.Parameter(part, requires_grad=parameter.requires_grad))


def _compute_by(module: nn.Module, forward: Callable[..., Tensor]) -> None:
    module.forward = forward


def _entering(enter: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A forward pre-hook that lets all inputs which may have gradients enter."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(enter(x) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)

    return hook


def _leaving(module: nn.Module, seams: _RegionBoundary) -> Callable[..., Tensor]:
    """The forward pass of a module whose outputs are added up; its bias comes after that, once."""
    whole: Callable[..., Tensor] = module.forward
    if type(module).forward is nn.Linear.forward:

        def product(x: Tensor) -> Tensor:
            return F.linear(x, module.get_parameter("weight"))

        whole_without_bias: Callable[..., Tensor] = product
    else:

        def custom(*args: Any) -> Tensor:  # a class that adds its bias itself: take that off again, on every rank
            out, bias = whole(*args), getattr(module, "bias", None)
            return out if bias is None else out - bias

        whole_without_bias = custom

    def forward(*args: Any) -> Tensor:
        out = seams.leave(whole_without_bias(*args))
        bias = getattr(module, "bias", None)
        return out if bias is None else out + bias

    return forward


def _n_copies(path: str, parts: Parts) -> int:
    """How many ranks have the same part of what a norm acts on, as with few KV heads."""
    name = next(name for name in parts[0] if name.startswith(f"{path}."))
    boxes = [part[name] for part in parts]
    return len(boxes) // len(set(boxes))


def apply_tensor_parallel(model: Transformer, mesh: Mesh, *, sequence_parallel: bool = False) -> None:
    """Let a network that has the layers of this rank's stage, whole, be this rank's part of them.

    Args:
        model: `Transformer(config, local_layers(config, mesh))`.
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


def _parts(model: Transformer, mesh: Mesh) -> Parts:
    layout, infos = mesh.layout, stage_parameters(model.config, mesh.layout.pp, mesh.here.pp)
    return [{info.name: tp_box(info, layout.tp, tp) for info in infos} for tp in range(layout.tp)]


def _check_tokens_can_be_dealt_out(model: Transformer) -> None:
    for path, module in model.named_modules():
        cls = type(module)
        if cls.__module__.partition(".")[0] not in ("reallm", "torch"):
            raise ConfigError(
                f"sequence parallelism does not go with {cls.__module__}.{cls.__qualname__} ('{path}'), which may need "
                "all tokens; leave sequence_parallel out"
            )
