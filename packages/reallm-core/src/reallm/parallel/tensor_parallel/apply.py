"""Applies tensor parallelism to a network: cuts its parameters, and adds collectives where split layers begin and end.

Each layer declares how it can be split (`split`, `shards`, `over_sharded_dim`), which determines its collectives:

| layer | collectives (forward / backward) |
|---|---|
| column-parallel (`split="column"`) | identity / all-reduce of its input |
| row-parallel (`split="row"`) | all-reduce / identity of its output |
| both in one, as experts (`split="column_row"`) | both of these |
| constants of each head (`PerHead`) | none; a rank has those of its heads |
| input that all heads share (`SharedByHeads`) | identity / all-reduce of its input |
| token embedding | all-reduce / identity of its output |
| norm over a split dim (`over_sharded_dim`) | all-reduce / all-reduce of its means |
| output head | see `layers.VocabParallel` |

Boxes are passed for all ranks, so that one process can simulate all of them.

Shapes: T packed tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reallm.errors import ConfigError, PluginError
from reallm.model.layers import Linear, Norm, PerHead, SharedByHeads, TokenEmbedding
from reallm.model.lora import LoRALinear
from reallm.model.moe.layer import Experts, MoEMLP
from reallm.model.parameter_names import head_weight_name, split_parameter_name
from reallm.model.products.linear import linear
from reallm.model.sharding import Box, Shard, units_of_rank
from reallm.model.transformer import Transformer
from reallm.parallel.sharding import BoxesByRank
from reallm.parallel.tensor_parallel.layers import VocabParallel, parallel_norm, vocab_parallel_embedding
from reallm.parallel.tensor_parallel.mappings import (
    Peers,
    copy_to_tp_region,
    gather_from_sp_region,
    reduce_from_tp_region,
    reduce_scatter_to_sp_region,
    scatter_to_sp_region,
)


def apply_tensor_parallel(
    model: Transformer,
    peers: Peers,
    boxes: BoxesByRank,
    shards: Mapping[str, Shard | None],
    splits: Mapping[str, str],
    *,
    sequence_parallel: bool = False,
) -> None:
    """Turn a network into this rank's part of it, in place.

    Args:
        model: network of whole layers, on the meta device or with values, from which this rank's boxes are copied.
        peers: the tensor-parallel ranks.
        boxes: the boxes of all ranks.
        shards: how each parameter is split, `model.parameter_shards()`.
        splits: path of a module -> its `split`, `model.module_splits()`; ignored where no parameter is split.
        sequence_parallel: whether ranks also split the tokens outside of split layers, in training.

    Raises:
        ConfigError: a layer cannot be split in this way.
    """
    if sequence_parallel:
        _check_sequence_parallel(model)
    _cut_parameters(model, boxes[peers.rank])
    split_names = [name for name, shard in shards.items() if shard is not None]
    boundary = (_SequenceParallelBoundary if sequence_parallel else _RegionBoundary)(peers)
    experts = [path for path, module in model.named_modules() if isinstance(module, MoEMLP)]
    for path, module in list(model.named_modules()):
        split = splits.get(path) if any(name.startswith(f"{path}.") for name in split_names) else None
        if isinstance(module, TokenEmbedding):
            start = boxes[peers.rank][f"{path}.weight"].starts[0]
            _replace_forward(module, vocab_parallel_embedding(module, peers, start))
        elif isinstance(module, Norm) and module.over_sharded_dim:
            _replace_forward(module, parallel_norm(module, peers))
        elif isinstance(module, PerHead):
            module.keep(units_of_rank(len(module.values), peers.size, peers.rank))
        elif split == "column" or isinstance(module, SharedByHeads):
            within_experts = any(path.startswith(f"{each}.") for each in experts)
            enter = boundary.enter_with_all_tokens if within_experts else boundary.enter
            module.register_forward_pre_hook(_on_inputs(enter))
        elif split is not None:
            if isinstance(module, Experts) and peers.rank > 0:
                module.down.bias_factor = 0.0
            if split == "column_row":
                module.register_forward_pre_hook(_on_inputs(boundary.enter_with_all_tokens))
            if isinstance(module, LoRALinear):
                module.sum_over_ranks = peers.all_reduce_sum
            _replace_forward(module, _row_parallel_forward(module, boundary))
    boundary.register_hooks([model.layers[str(number)] for number in model.block_numbers])
    head = head_weight_name(model.config)
    if not model.config.is_critic and head in boxes[0]:
        model.vocabulary = VocabParallel(peers, [of_rank[head].shape[0] for of_rank in boxes])
    model.tp_size = peers.size
    model.compile_blocker = "tensor parallelism"
    model.sequence_parallel = sequence_parallel  # type: ignore[assignment] # modules declare nothing but tensors


def check_splits(model: Transformer, shards: Mapping[str, Shard | None], splits: Mapping[str, str]) -> None:
    """Check that each module that declares a `split` has a parameter that is split: otherwise ranks have no parts.

    Not of `Linear`, whose `shards` a layer may replace, to have it whole on each rank.

    Raises:
        PluginError: a module has none; names its class.
    """
    split_names = [name for name, shard in shards.items() if shard is not None]
    for path, split in splits.items():
        module = model.get_submodule(path)
        if not isinstance(module, Linear | LoRALinear) and not any(name.startswith(f"{path}.") for name in split_names):
            raise PluginError(
                f"{type(module).__qualname__} declares split='{split}', but none of its parameters "
                "is split; give one a Shard in `shards`, or remove `split`"
            )


class _RegionBoundary:
    """The collectives where a tensor-parallel region begins and ends."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self._last_entered: tuple[Tensor, Tensor] | None = None
        """The last input of `enter`, and its result."""

    def enter(self, x: Tensor) -> Tensor:
        """Enter a region; successive layers with the same input, such as queries, keys and values, enter only once."""
        return self._enter_once(x, self._enter)

    def enter_with_all_tokens(self, x: Tensor) -> Tensor:
        """Enter a region from an input that has all tokens even with sequence parallelism."""
        return self._enter_once(x, self._copy)

    def exit(self, x: Tensor) -> Tensor:
        """Leave a region: sum the partial outputs of the ranks."""
        return reduce_from_tp_region(x, self.peers)

    def register_hooks(self, blocks: Sequence[nn.Module]) -> None:
        """Register hooks on the blocks."""
        for block in blocks:
            block.register_forward_pre_hook(self._before_block)
            block.register_forward_hook(self._after_block)

    def _enter_once(self, x: Tensor, enter: Callable[[Tensor], Tensor]) -> Tensor:
        if self._last_entered is None or self._last_entered[0] is not x:
            self._last_entered = x, enter(x)
        return self._last_entered[1]

    def _copy(self, x: Tensor) -> Tensor:
        return copy_to_tp_region(x, self.peers)

    def _enter(self, x: Tensor) -> Tensor:
        return self._copy(x)

    def _before_block(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        """Hook that runs before `block(x, context, cache)`."""
        self._last_entered = None

    def _after_block(self, block: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        self._last_entered = None


class _SequenceParallelBoundary(_RegionBoundary):
    """Boundary with sequence parallelism (Korthikanti et al., 2022): outside of regions a rank has some of the tokens.

    Tokens are scattered before the first block and gathered after the last one; experts also get all tokens, which
    their router needs. Without gradients, as in generation, all ranks have all tokens.
    """

    def __init__(self, peers: Peers) -> None:
        super().__init__(peers)
        self._n_tokens: int | None = None
        """Number of tokens T of the packed batch in the current block; None without gradients."""

    def exit(self, x: Tensor) -> Tensor:
        if self._n_tokens is None:
            return reduce_from_tp_region(x, self.peers)
        return reduce_scatter_to_sp_region(x, self.peers)

    def register_hooks(self, blocks: Sequence[nn.Module]) -> None:
        super().register_hooks(blocks)
        blocks[0].register_forward_pre_hook(self._scatter_input)
        blocks[-1].register_forward_hook(self._gather_output, prepend=True)
        for block in blocks:
            for module in block.modules():
                if isinstance(module, MoEMLP):
                    module.register_forward_pre_hook(self._gather_input)

    def _enter(self, x: Tensor) -> Tensor:
        if self._n_tokens is None:
            return copy_to_tp_region(x, self.peers)
        return gather_from_sp_region(x, self.peers, self._n_tokens, reduce_scatter_grad=True)

    def _before_block(self, block: nn.Module, args: tuple[Any, ...]) -> None:
        super()._before_block(block, args)
        self._n_tokens = args[1].seqs.n_tokens if torch.is_grad_enabled() else None

    def _scatter_input(self, block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return None if self._n_tokens is None else (scatter_to_sp_region(args[0], self.peers), *args[1:])

    def _gather_output(self, block: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        return out if self._n_tokens is None else gather_from_sp_region(out, self.peers, self._n_tokens)

    def _gather_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if self._n_tokens is None:
            return None
        return gather_from_sp_region(args[0], self.peers, self._n_tokens), *args[1:]


def _check_sequence_parallel(model: Transformer) -> None:
    """Raise ConfigError if a layer comes from a plugin, since it may need all tokens."""
    for path, module in model.named_modules():
        cls = type(module)
        if cls.__module__.partition(".")[0] not in ("reallm", "torch"):
            raise ConfigError(
                f"sequence parallelism does not work with {cls.__module__}.{cls.__qualname__} ('{path}'), which may "
                "need all tokens; leave sequence_parallel out"
            )


def _cut_parameters(model: nn.Module, boxes: Mapping[str, Box]) -> None:
    for name, parameter in list(model.named_parameters()):
        box = boxes[name]
        if box.shape != parameter.shape:
            path, own_name = split_parameter_name(name)
            cut = parameter.detach()[box.slices].clone()
            setattr(model.get_submodule(path), own_name, nn.Parameter(cut, requires_grad=parameter.requires_grad))


def _replace_forward(module: nn.Module, forward: Callable[..., Tensor]) -> None:
    module.forward = forward


def _on_inputs(function: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
    """A forward pre-hook that applies a function to all floating-point inputs."""

    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(function(x) if isinstance(x, Tensor) and x.is_floating_point() else x for x in args)

    return hook


def _row_parallel_forward(module: nn.Module, boundary: _RegionBoundary) -> Callable[..., Tensor]:
    """The forward pass of a module whose outputs are summed over the ranks; its bias is added once, after that."""
    is_linear = type(module).forward in (Linear.forward, nn.Linear.forward)
    without_bias = _linear_without_bias if is_linear else _forward_without_bias

    def forward(*args: Any) -> Tensor:
        out = boundary.exit(without_bias(module, *args))
        bias = getattr(module, "bias", None)
        return out if bias is None else out + bias

    return forward


def _linear_without_bias(module: nn.Module, x: Tensor) -> Tensor:
    return linear(x, module.get_parameter("weight"), prepacked=getattr(module, "prepacked", None))


def _forward_without_bias(module: nn.Module, *args: Any) -> Tensor:
    """The forward pass of any class, as if the module's bias were zero: subtracting it would round in bfloat16."""
    forward: Callable[..., Tensor] = type(module).forward
    bias = module._parameters.get("bias")
    if bias is None:
        return forward(module, *args)
    twin = copy.copy(module)  # shares everything with the module but the bias
    twin._parameters = {**module._parameters, "bias": nn.Parameter(torch.zeros_like(bias), requires_grad=False)}
    return forward(twin, *args)
