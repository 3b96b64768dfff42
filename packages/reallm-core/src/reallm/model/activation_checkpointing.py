"""Gradient checkpointing: what the backward pass computes again, so that it need not be kept from the forward pass.

- `none`: whatever autograd asks for is kept.
- `selective`: the results of matrix products and of attention are kept. Those of layers that say `recompute = True`
  (norms, activations), which are as large and cost little, are computed again (Korthikanti et al., 2022, section 5).
- `full`: only what enters a block is kept, and the block runs again (Chen et al., 2016).

Gradients stay the same, bit for bit where operations repeat their numbers: dropout is replayed, or its masks are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import checkpoint as torch_checkpoint


def checkpoint(function: Callable[..., Tensor], *inputs: object) -> Tensor:
    """`function(*inputs)`, of which only the inputs are kept; the backward pass runs it again."""
    return cast(Tensor, torch_checkpoint.checkpoint(function, *inputs, use_reentrant=False))


def selective_checkpoint(block: nn.Module, *inputs: object) -> Tensor:
    """`block(*inputs)`; what its layers that say `recompute` gave is not kept, the backward pass runs them again."""
    recipes = _Recipes()
    layers = [layer for layer in block.modules() if getattr(layer, "recompute", False)]
    handles = [layer.register_forward_hook(recipes.note) for layer in layers]
    try:
        with saved_tensors_hooks(recipes.pack, _Recipe.unpack):
            return cast(Tensor, block(*inputs))
    finally:
        for handle in handles:
            handle.remove()
        recipes.clear()


@dataclass(eq=False)
class _Recipe:
    """In place of a tensor: the layer and the inputs that give it again."""

    layer: nn.Module
    inputs: tuple[Tensor, ...]
    layout: tuple[object, ...]
    n_uses: int = 0
    """How often the backward pass will ask: queries, keys and values ask for the same normed stream."""
    n_given: int = 0
    value: Tensor | None = None
    """Kept from the first question to the last."""

    def make(self) -> Tensor:
        if self.value is None:
            with torch.no_grad():
                self.value = cast(Tensor, self.layer.forward(*self.inputs))
        value = self.value
        self.n_given += 1
        if self.n_given % self.n_uses == 0:
            self.value = None
        return value

    @staticmethod
    def unpack(kept: Tensor | _Recipe) -> Tensor:
        return kept.make() if isinstance(kept, _Recipe) else kept


class _Recipes:
    """The recipes of one block's forward pass, found by the storage of the tensor that each gives."""

    def __init__(self) -> None:
        # a weak reference lets the memory go, but its address names no other storage as long as it is here
        self._recipes: dict[StorageWeakRef, _Recipe] = {}

    def note(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Forward hook of a layer."""
        recipe = _Recipe(layer, tuple(tensor.detach() for tensor in inputs), _layout(output))
        self._recipes[StorageWeakRef(output.untyped_storage())] = recipe

    def pack(self, tensor: Tensor) -> Tensor | _Recipe:
        """What autograd keeps in place of a tensor."""
        recipe = self._recipes.get(StorageWeakRef(tensor.untyped_storage()))
        if recipe is None or recipe.layout != _layout(tensor):
            return tensor
        recipe.n_uses += 1
        return recipe

    def clear(self) -> None:
        self._recipes.clear()


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.storage_offset()
