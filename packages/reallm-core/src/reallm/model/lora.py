"""Low-rank adapters (LoRA and DoRA) of linear layers, as PEFT computes them.

Shapes: T packed tokens, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reallm.model.layers import Linear
from reallm.model.lora_config import LoRAConfig
from reallm.model.parameter_names import LORA_A, LORA_B, LORA_MAGNITUDE, adapter_dtype
from reallm.model.products.linear import input_grads, linear
from reallm.model.sharding import has_partial_grad


class LoRALinear(Linear):
    """A linear layer with a low-rank adapter: `x @ (W + scaling * B @ A).T + bias`.

    The weight [out, in] and the bias are those of the layer that it replaces. A `lora_a` [r, in] and B `lora_b`
    [out, r] are in at least float32, whatever the dtype of the weight, and are converted to it where they are used, as
    under autocast. With DoRA, `lora_magnitude` [out] is the length of each row of the adapted weight; as in its paper,
    the length that it replaces gets no gradient.

    Under tensor parallelism a rank has some rows of B, or some columns of A, with its part of the weight. The other
    matrix is whole on every rank, and its gradient there is a partial sum.
    """

    def __init__(self, base: Linear, config: LoRAConfig) -> None:
        nn.Module.__init__(self)  # the parameters are those of `base`
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias, self.split = base.weight, base.bias, base.split
        self.scaling, self.dropout = config.scaling, config.dropout
        like = torch.empty(0, dtype=adapter_dtype(self.weight.dtype), device=self.weight.device)
        self.lora_a = nn.Parameter(like.new_empty(config.rank, base.in_features))
        self.lora_b = nn.Parameter(like.new_empty(base.out_features, config.rank))
        self.lora_magnitude = nn.Parameter(like.new_empty(base.out_features)) if config.dora else None
        shard = base.shards["weight"]
        of_outputs, of_inputs = (shard if shard is not None and shard.dim == dim else None for dim in (0, 1))
        self.shards = {**base.shards, LORA_A: of_inputs, LORA_B: of_outputs}
        if config.dora:
            self.shards[LORA_MAGNITUDE] = of_outputs
        self.partial_grad = shard is not None or has_partial_grad(base)
        self.enabled = True
        """Whether the adapter counts; see `adapters_off`."""
        self.sum_over_ranks: Callable[[Tensor], Tensor] | None = None
        """All-reduce over tensor-parallel ranks, in place, if each has some columns of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return super().forward(x)
        a, b = self.lora_a.to(x.dtype), self.lora_b.to(x.dtype)
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        if self.lora_magnitude is not None:
            return self._dora(x, dropped, a, b, self.lora_magnitude)
        if dropped is not x or torch.compiler.is_compiling():
            product = linear(x, self.weight, self.bias, self.prepacked)
            return torch.add(product, linear(linear(dropped, a), b), alpha=self.scaling)
        if torch.is_grad_enabled():
            return cast(Tensor, _LoRALinear.apply(x, self.weight, self.bias, a, b, self.scaling))
        return _forward(x, self.weight, self.bias, a, b, self.scaling, self.prepacked)[0]

    def _dora(self, x: Tensor, dropped: Tensor, a: Tensor, b: Tensor, magnitude: Tensor) -> Tensor:
        product = linear(x, self.weight, prepacked=self.prepacked)
        update = linear(linear(dropped, a), b)
        scale = (magnitude / self.row_norms()).to(x.dtype)
        if dropped is x:
            out = torch.add(product, update, alpha=self.scaling) * scale
        else:  # PEFT scales the product of the inputs that are left, and adds the difference to the whole product
            out = product + (scale - 1) * linear(dropped, self.weight) + scale * (update * self.scaling)
        return out if self.bias is None else out + self.bias

    @torch.no_grad()
    def row_norms(self) -> Tensor:
        """The lengths [out], in at least float32, of the rows of `W + scaling * B @ A`, without computing that."""
        a, b, weight = self.lora_a, self.lora_b, self.weight
        with_a = linear(a.to(weight.dtype), weight).to(a.dtype)  # [r, out]
        squares = torch.linalg.vector_norm(weight, dim=1, dtype=a.dtype).square_()
        squares += 2 * self.scaling * (b * with_a.t()).sum(dim=1)
        squares += self.scaling**2 * (b * (b @ (a @ a.t()))).sum(dim=1)
        if self.sum_over_ranks is not None:
            squares = self.sum_over_ranks(squares)
        return squares.clamp_(min=0).sqrt_()

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """The adapted weight [out, in], in the dtype of the weight."""
        merged = torch.addmm(self.weight.to(self.lora_a.dtype), self.lora_b, self.lora_a, alpha=self.scaling)
        if self.lora_magnitude is not None:
            merged *= (self.lora_magnitude / self.row_norms())[:, None]
        return merged.to(self.weight.dtype)

    def fresh_parameter(self, name: str, generator: torch.Generator) -> Tensor | None:
        """The initial value of a parameter of the adapter, float32 or wider; None for other parameters."""
        if name == LORA_MAGNITUDE:
            return torch.linalg.vector_norm(self.weight, dim=1, dtype=adapter_dtype(self.weight.dtype))
        if name not in (LORA_A, LORA_B):
            return None
        return initial_matrix(name, self.get_parameter(name).shape, generator)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LoRALinear:
        """Convert or move the parameters, as `nn.Module.to` does; those of the adapter stay in at least float32."""
        adapter = [each for each in (self.lora_a, self.lora_b, self.lora_magnitude) if each is not None]

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
    bound = 1 / math.sqrt(shape[1])  # as Kaiming's uniform distribution with a = sqrt(5), which PEFT takes
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def add_adapters(block: nn.Module, config: LoRAConfig) -> set[str]:
    """Replace the linear layers of a block that the configuration names; returns the paths of those that it has."""
    modules = dict(block.named_modules())
    found = {path for path in config.targets if type(modules.get(path)) is Linear}
    for path in found:
        owner, _, name = path.rpartition(".")
        setattr(modules[owner], name, LoRALinear(cast(Linear, modules[path]), config))
    return found


@contextmanager
def adapters_off(network: nn.Module) -> Iterator[None]:
    """Context in which a network computes as its base model, without its adapters."""
    layers = [module for module in network.modules() if isinstance(module, LoRALinear) and module.enabled]
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, prepacked: Any = None
) -> tuple[Tensor, Tensor]:
    """The output, and `x @ A.T` [T, r]."""
    out, within = linear(x, weight, bias, prepacked), linear(x, a)
    out.view(-1, out.shape[-1]).addmm_(within.view(-1, within.shape[-1]), b.t(), alpha=scaling)
    return out, within


class _LoRALinear(torch.autograd.Function):
    """The sum of both products in one tensor; only `x` and `x @ A.T` are saved."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        out, within = _forward(x, weight, bias, a, b, scaling)
        ctx.save_for_backward(x, weight, a, b, within)
        ctx.scaling = scaling
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, within = ctx.saved_tensors
        grads = grad.reshape(-1, grad.shape[-1])
        grads_within = (grads @ b).mul_(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = input_grads(grads, weight).addmm_(grads_within, a).view(x.shape)
        grad_a = grads_within.t() @ x.reshape(-1, x.shape[-1])
        grad_b = (grads.t() @ within.reshape(-1, within.shape[-1])).mul_(ctx.scaling)
        return grad_x, None, None, grad_a, grad_b, None
