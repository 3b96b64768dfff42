"""Gradient (activation) checkpointing: recomputing activations in the backward pass instead of saving them.

- `none`: all tensors that autograd needs are saved.
- `selective`: outputs of matrix products and of attention are saved. Outputs of layers that declare `recompute = True`
  (norms, activations), which are as large and cheap to compute, are recomputed (Korthikanti et al., 2022, section 5).
- `full`: only the inputs of a block are saved, and the block runs again (Chen et al., 2016).

Gradients stay the same, bit for bit where operations are deterministic: dropout is replayed, or its masks are saved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import checkpoint as torch_checkpoint

from reallm.model.gradients import accumulate_gradients


def checkpoint(function: Callable[..., Tensor], *inputs: object) -> Tensor:
    """`function(*inputs)`, saving only the inputs; the backward pass runs it again."""
    if any(isinstance(each, Tensor) and each.is_meta for each in inputs):
        return cast(Tensor, _WithoutValues.apply(function, *inputs))
    return cast(Tensor, torch_checkpoint.checkpoint(function, *inputs, use_reentrant=False))


class _WithoutValues(torch.autograd.Function):
    """`checkpoint` on the meta device, where no random numbers are replayed; torch's own imports its compiler."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], *inputs: object) -> Tensor:
        ctx.function, ctx.inputs = function, inputs
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [
            each.detach().requires_grad_(each.requires_grad) if isinstance(each, Tensor) else each
            for each in ctx.inputs
        ]
        with torch.enable_grad():
            accumulate_gradients(ctx.function(*inputs), grad)
        return None, *[each.grad if isinstance(each, Tensor) else None for each in inputs]


def selective_checkpoint(block: nn.Module, *inputs: object) -> Tensor:
    """`block(*inputs)`, saving no outputs of layers that declare `recompute`; the backward pass reruns them."""
    recipes = _Recipes()
    layers = [layer for layer in block.modules() if getattr(layer, "recompute", False)]
    handles = [layer.register_forward_hook(recipes.record) for layer in layers]
    try:
        with saved_tensors_hooks(recipes.pack, _Recipe.unpack):
            return cast(Tensor, block(*inputs))
    finally:
        for handle in handles:
            handle.remove()
        recipes.clear()


@dataclass(eq=False)
class _Recipe:
    """A layer and its inputs, saved in place of a tensor that can be recomputed from them."""

    layer: nn.Module
    inputs: tuple[Tensor, ...]
    layout: tuple[object, ...]
    n_uses: int = 0
    """Number of uses in the backward pass: queries, keys and values read the same normed hidden states."""
    n_unpacked: int = 0
    value: Tensor | None = None
    """The recomputed tensor, kept from the first use to the last."""

    def compute(self) -> Tensor:
        if self.value is None:
            with torch.no_grad():
                self.value = cast(Tensor, self.layer.forward(*self.inputs))
        value = self.value
        self.n_unpacked += 1
        if self.n_unpacked % self.n_uses == 0:
            self.value = None
        return value

    @staticmethod
    def unpack(saved: Tensor | _Recipe) -> Tensor:
        return saved.compute() if isinstance(saved, _Recipe) else saved


class _Recipes:
    """The recipes of one block's forward pass, by the storage of the tensor that each computes."""

    def __init__(self) -> None:
        # a weak reference does not keep the memory, but while it exists no other storage gets its address
        self._recipes: dict[StorageWeakRef, _Recipe] = {}

    def record(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Forward hook of a layer that declares `recompute`."""
        recipe = _Recipe(layer, tuple(tensor.detach() for tensor in inputs), _layout(output))
        self._recipes[StorageWeakRef(output.untyped_storage())] = recipe

    def pack(self, tensor: Tensor) -> Tensor | _Recipe:
        """The object that autograd saves in place of a tensor: its recipe, or the tensor itself."""
        recipe = self._recipes.get(StorageWeakRef(tensor.untyped_storage()))
        if recipe is None or recipe.layout != _layout(tensor):
            return tensor
        recipe.n_uses += 1
        return recipe

    def clear(self) -> None:
        self._recipes.clear()


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset()
