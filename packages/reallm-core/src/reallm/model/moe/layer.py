"""Mixture of experts in place of the MLP, and its load-balancing loss.

Shapes: T packed tokens, E hidden, X experts, F intermediate size of one, k experts a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from reallm.errors import PluginError
from reallm.model.config import ReaLModelConfig
from reallm.model.forward_context import ForwardContext
from reallm.model.layers import Activation, GatedMLP, Linear, SharedByHeads, make_activation
from reallm.model.moe.adapted_experts import adapted_expert_mlp
from reallm.model.moe.expert_linear import ExpertLinear
from reallm.model.moe.experts import Assignment, ExpertParameters, grouped_expert_mlp
from reallm.model.moe.router import make_router, moe_of
from reallm.model.router_stats import RouterStats
from reallm.model.sharding import Split


class MoEMLP(nn.Module):
    """`sum_e weight_e * down_e(act(gate_e(x), up_e(x)))` over the experts of a token (Shazeer et al., 2017).

    Shared experts are added (Dai et al., 2024: DeepSeekMoE).
    """

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        moe = moe_of(config)
        self.router = make_router(config)
        self.experts = Experts(config, block)
        self.shared = SharedExperts(config, block) if moe.n_shared_experts else None
        self.jitter = moe.jitter

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        if self.jitter and self.training:
            x = x * torch.empty_like(x).uniform_(1.0 - self.jitter, 1.0 + self.jitter)
        probs, weights, chosen = self.router(x)
        mix = _mix_uncompiled if torch.compiler.is_compiling() else _mix
        out = mix(self.experts, x, probs, weights, chosen, context)
        return out if self.shared is None else out + self.shared(x, context)


class SharedExperts(GatedMLP):
    """The MLP of all tokens, as one; with `shared_gate` times `sigmoid(token_gate(x))`, one number a token.

    The inner features are multiplied by that number, which is the same: tensor parallelism splits them, and the outputs
    of a rank are partial sums.
    """

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__(config.replace(intermediate_size=config.shared_expert_size), block)
        self.token_gate: Linear | None = None
        if moe_of(config).shared_gate:
            self.for_gate, self.gate_act = SharedByHeads(), Activation("sigmoid")
            self.token_gate = Linear(config.hidden_size, 1, split=None)
            self.token_gate.partial_grad = True  # type: ignore[assignment] # modules declare nothing but tensors

    def forward(self, x: Tensor, context: object) -> Tensor:
        inner = self.act(*self.project(x))
        if self.token_gate is not None:
            inner = inner * self.gate_act(self.token_gate(self.for_gate(x)))
        return self.down(inner)


def _mix(
    experts: nn.Module, x: Tensor, probs: Tensor, weights: Tensor, chosen: Tensor, context: ForwardContext
) -> Tensor:
    """Output [T, E] of the chosen experts; records the router's statistics where the context has a log."""
    assignment = Assignment.of(chosen, probs.shape[1])
    if context.router_stats is not None:
        context.router_stats.append(RouterStats(assignment.counts, probs.sum(dim=0, dtype=torch.float32), len(x)))
    return cast(Tensor, experts(x, assignment, weights))


_mix_uncompiled = _disable_dynamo(_mix)  # torch.compiler.disable would import the compiler at once
"""`_mix` excluded from compilation, because the number of tokens of an expert depends on the data."""


class Experts(nn.Module):
    """All experts: gated MLPs, each computing the tokens that chose it."""

    split: Split = "column_row"
    exact = False

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        moe, size, inner = moe_of(config), config.hidden_size, config.expert_size
        self.gate = ExpertLinear(moe.n_experts, size, inner, bias=moe.gate_bias, split="column")
        self.up = ExpertLinear(moe.n_experts, size, inner, bias=moe.up_bias, split="column")
        self.down = ExpertLinear(moe.n_experts, inner, size, bias=moe.down_bias, split="row")
        self.act = make_activation(config, block)
        if any(True for _ in self.act.parameters()):
            raise PluginError(f"{config.activation}: an activation of experts cannot have parameters of its own")

    def forward(self, x: Tensor, chosen: Assignment, weights: Tensor) -> Tensor:
        layers, chosen = (self.gate, self.up, self.down), replace(chosen, exact=self.exact)
        if any(layer.adapter is not None for layer in layers):
            return adapted_expert_mlp(x, chosen, weights, *layers, self.act)
        parameters = ExpertParameters(*(each.weight for each in layers), *(each.scaled_bias for each in layers))
        return grouped_expert_mlp(x, chosen, weights, parameters, self.act)


def load_balancing_loss(stats: Sequence[RouterStats]) -> Tensor:
    """Load-balancing loss `X * sum_e f_e p_e` (Fedus et al., 2022, equations 4 to 6).

    `f_e` is the number of the `k` choices of a token that fall on expert `e`, `p_e` its probability, both averaged over
    the tokens of all layers together, as in `load_balancing_loss_func` of transformers. With even routing the loss is
    `k`.

    Args:
        stats: statistics of each layer with experts, from one or more forward passes. At least one.

    Returns:
        [] float32, differentiable with respect to the probabilities.
    """
    n_tokens = max(1, sum(each.n_tokens for each in stats))
    chosen = torch.stack([each.counts for each in stats]).sum(dim=0) / n_tokens
    probs = torch.stack([each.prob_sums for each in stats]).sum(dim=0) / n_tokens
    return len(probs) * (chosen * probs).sum()
