"""`AdaptedLayer`: what layers with a low-rank adapter have in common.

Shapes: X experts, r rank; leading dims in brackets are those of stacked weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reallm.model.lora_config import LoRAConfig
from reallm.model.parameter_names import LORA_A, LORA_B, LORA_MAGNITUDE, adapter_dtype
from reallm.model.sharding import Shard, Shards


class LowRank(NamedTuple):
    """The matrices of an adapter, which adds `scaling * B @ A` to a weight."""

    a: Tensor
    """A [(X,) r, in]."""
    b: Tensor
    """B [(X,) out, r]."""
    scaling: float


class AdaptedLayer(nn.Module):
    """A layer with a weight [(X,) out, in] and an adapter: A `lora_a` [(X,) r, in] and B `lora_b` [(X,) out, r].

    The matrices are in at least float32, whatever the dtype of the weight, and are converted to it where they are used,
    as under autocast.
    """

    weight: Tensor
    scaling: float
    shards: Shards
    enabled = True
    """Whether the adapter counts; see `adapters_off`."""

    def add_matrices(self, config: LoRAConfig, shard: Shard | None) -> None:
        """Add A and B, without values, and declare how they are split where the weight's split is `shard`."""
        *stacked, n_out, n_in = self.weight.shape
        like = torch.empty(0, dtype=adapter_dtype(self.weight.dtype), device=self.weight.device)
        self.lora_a = nn.Parameter(like.new_empty(*stacked, config.rank, n_in))
        self.lora_b = nn.Parameter(like.new_empty(*stacked, n_out, config.rank))
        self.scaling = config.scaling
        splits_outputs = shard is not None and shard.dim == len(stacked)
        self.shards = {"weight": shard, LORA_A: None if splits_outputs else shard, LORA_B: None}
        if splits_outputs:
            self.shards[LORA_B] = shard

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The adapted weight [(X,) out, in], in the dtype of the weight."""
        merged = self.weight.to(self.lora_a.dtype) + self.scaling * (self.lora_b @ self.lora_a)
        return merged.to(self.weight.dtype)

    def fresh_parameter(self, name: str, generator: torch.Generator) -> Tensor | None:
        """The initial value of A or B, float32; None for other parameters."""
        if name not in (LORA_A, LORA_B):
            return None
        return initial_matrix(name, self.get_parameter(name).shape, generator)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdaptedLayer:
        """Convert or move the parameters, as `nn.Module.to` does; those of the adapter stay in at least float32."""
        adapter = [
            each for name in (LORA_A, LORA_B, LORA_MAGNITUDE) if (each := self._parameters.get(name)) is not None
        ]

        def convert(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            if result.dtype.itemsize >= 4 or not any(tensor is each or tensor is each.grad for each in adapter):
                return result
            return tensor.to(result.device, torch.float32)

        super()._apply(convert, recurse)
        return self


def initial_matrix(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """The initial value of A or B, float32 on the CPU: B is zero, so that the network begins as its base."""
    if name == LORA_B:
        return torch.zeros(shape)
    bound = 1 / math.sqrt(shape[-1])  # as Kaiming's uniform distribution with a = sqrt(5), which PEFT takes
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """Context in which a network computes as its base model, without its adapters."""
    layers = [module for module in network.modules() if isinstance(module, AdaptedLayer) and module.enabled]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True
