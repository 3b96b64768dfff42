"""Low-rank adapters (LoRA and DoRA) of the layers of a block, as PEFT computes them.

Shapes: T packed tokens, r rank.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reallm.model.adapted import AdaptedLayer
from reallm.model.layers import Linear
from reallm.model.lora_config import LoRAConfig
from reallm.model.moe.expert_linear import ExpertLinear
from reallm.model.moe.layer import Experts
from reallm.model.moe.lora import LoRAExpertLinear, LoRARouter
from reallm.model.moe.router import Router
from reallm.model.parameter_names import LORA_B, LORA_MAGNITUDE, adapter_dtype
from reallm.model.products.linear import input_grads, joint_linear, linear
from reallm.model.products.prepacked import DerivedWeight
from reallm.model.sharding import has_partial_grad


class LoRALinear(AdaptedLayer, Linear):
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
        self.dropout = config.dropout
        self.add_matrices(config, base.shards["weight"])
        self.lora_magnitude = nn.Parameter(self.lora_b.new_empty(base.out_features)) if config.dora else None
        self.shards |= base.shards
        if config.dora:
            self.shards[LORA_MAGNITUDE] = self.shards[LORA_B]
        self.partial_grad = base.shards["weight"] is not None or has_partial_grad(base)
        self.sum_over_ranks: Callable[[Tensor], Tensor] | None = None
        """All-reduce over tensor-parallel ranks, in place, if each has some columns of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return super().forward(x)
        if self.prepacked is not None:
            merged = joint_linear(x, [self.weight], [self.bias], self.prepacked, multiplied=[self.multiplied])
            if merged is not None:
                return merged[0]
        a, b = self.lora_a.to(x.dtype), self.lora_b.to(x.dtype)
        dropped = F.dropout(x, self.dropout, self.training) if self.dropout else x
        if self.lora_magnitude is not None:
            return self._dora(x, dropped, a, b, self.lora_magnitude)
        if dropped is not x or torch.compiler.is_compiling():
            product = linear(x, self.weight, self.bias)
            return torch.add(product, linear(linear(dropped, a), b), alpha=self.scaling)
        if torch.is_grad_enabled():
            return cast(Tensor, _LoRALinear.apply(x, self.weight, self.bias, a, b, self.scaling))
        return _forward(x, self.weight, self.bias, a, b, self.scaling)[0]

    @property
    def multiplied(self) -> Tensor | DerivedWeight:
        """The adapted weight, which is only made where prepacked weights are, and anew when a part has changed."""
        if not self.enabled:
            return self.weight
        parts = self.weight, self.lora_a, self.lora_b, self.lora_magnitude
        return DerivedWeight(tuple(each for each in parts if each is not None), self.merged_weight)

    @property
    def only_multiplies(self) -> bool:
        return type(self) is LoRALinear

    def _dora(self, x: Tensor, dropped: Tensor, a: Tensor, b: Tensor, magnitude: Tensor) -> Tensor:
        product = linear(x, self.weight)
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
        return super().fresh_parameter(name, generator)


def adaptable_layers(network: nn.Module) -> dict[str, nn.Module]:
    """Path -> each layer of a network, or of a block, that can have an adapter.

    They are linear layers, routers, and the linear layers of experts; not of classes of a family's own.
    """
    found: dict[str, nn.Module] = {}
    for path, module in network.named_modules():
        if type(module) in (Linear, Router):
            found[path] = module
        elif type(module) is Experts:
            found |= {f"{path}.{name}": layer for name, layer in module.named_children()}
    return found


def add_adapters(block: nn.Module, config: LoRAConfig) -> set[str]:
    """Replace the layers of a block that the configuration names; returns the paths of those that it has.

    Raises:
        ConfigError: such a layer cannot have such an adapter.
    """
    layers = adaptable_layers(block)
    found = layers.keys() & set(config.targets)
    for path in found:
        owner, _, name = path.rpartition(".")
        setattr(block.get_submodule(owner), name, _adapted(layers[path], config))
    return found


def _adapted(layer: nn.Module, config: LoRAConfig) -> AdaptedLayer:
    if isinstance(layer, ExpertLinear):
        return LoRAExpertLinear(layer, config)
    if isinstance(layer, Router):
        return LoRARouter(layer, config)
    return LoRALinear(cast(Linear, layer), config)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """The output, and `x @ A.T` [T, r]."""
    out, within = linear(x, weight, bias), linear(x, a)
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
