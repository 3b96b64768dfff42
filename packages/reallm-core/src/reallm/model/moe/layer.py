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

from reallm.model.activations import ACTIVATION_FUNCTIONS, exact_activation
from reallm.model.config import MoEConfig, ReaLModelConfig
from reallm.model.forward_context import ForwardContext
from reallm.model.moe.experts import Assignment, grouped_expert_mlp
from reallm.model.products.linear import linear
from reallm.model.router_stats import RouterStats
from reallm.model.sharding import Shard, Shards, Split


class MoEMLP(nn.Module):
    """`sum_e weight_e * down_e(act(gate_e(x)) * up_e(x))` over the experts of a token (Shazeer et al., 2017)."""

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        moe = _moe_of(config)
        self.router = Router(config)
        self.experts = Experts(config)
        self.jitter = moe.jitter

    def forward(self, x: Tensor, context: ForwardContext) -> Tensor:
        if self.jitter and self.training:
            x = x * torch.empty_like(x).uniform_(1.0 - self.jitter, 1.0 + self.jitter)
        probs, weights, chosen = self.router(x)
        mix = _mix_uncompiled if torch.compiler.is_compiling() else _mix
        return mix(self.experts, x, probs, weights, chosen, context)


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


class Router(nn.Module):
    """Chooses the experts of each token and their weights; probabilities are computed in float32."""

    exact = False

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        moe = _moe_of(config)
        self.weight = nn.Parameter(torch.empty(moe.n_experts, config.hidden_size))
        self.shards: Shards = {"weight": None}  # each expert is split, so every rank has a part of every expert
        self.top_k = moe.top_k
        self.normalize = moe.normalize_top_k

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities [T, X] of all experts, and weights [T, k] (dtype of `x`) and indices [T, k] of the chosen."""
        logits = linear(x, self.weight, exact=self.exact)
        probs = logits.softmax(dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
        weights, chosen = probs.topk(self.top_k, dim=-1)
        if self.normalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return probs, weights.to(x.dtype), chosen


class ExpertLinear(nn.Module):
    """Stacked weights [X, out, in] of a linear layer of each expert."""

    def __init__(self, n_experts: int, n_in: int, n_out: int, *, split: Split) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, n_out, n_in))
        self.shards: Shards = {"weight": Shard(1 if split == "column" else 2)}


class Experts(nn.Module):
    """All experts: gated MLPs, each computing the tokens that chose it."""

    split: Split = "column_row"
    exact = False

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        moe, size = _moe_of(config), config.hidden_size
        self.gate = ExpertLinear(moe.n_experts, size, config.expert_size, split="column")
        self.up = ExpertLinear(moe.n_experts, size, config.expert_size, split="column")
        self.down = ExpertLinear(moe.n_experts, config.expert_size, size, split="row")
        self.activation = ACTIVATION_FUNCTIONS[config.activation]
        self.exact_activation = exact_activation(config.activation)

    def forward(self, x: Tensor, chosen: Assignment, weights: Tensor) -> Tensor:
        gate, up, down = self.gate.weight, self.up.weight, self.down.weight
        activation = self.exact_activation if self.exact else self.activation
        return grouped_expert_mlp(x, replace(chosen, exact=self.exact), weights, gate, up, down, activation)


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


def _moe_of(config: ReaLModelConfig) -> MoEConfig:
    assert config.moe is not None, "a block has experts only where the configuration says so"
    return config.moe
