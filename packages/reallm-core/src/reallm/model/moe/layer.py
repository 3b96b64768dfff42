"""A mixture of experts in place of the MLP, and the loss that keeps it balanced.

Shapes: T packed tokens, E hidden, X experts, F intermediate size of one, k experts a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from reallm.model.config import MoEConfig, ReaLModelConfig
from reallm.model.forward_context import ForwardContext
from reallm.model.layers import ACTIVATION_FUNCTIONS
from reallm.model.moe.experts import Assignment, grouped_expert_mlp
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
    """What the chosen experts give, [T, E]; notes the routing if somebody asks for it."""
    assignment = Assignment.of(chosen, probs.shape[1])
    if context.router_stats is not None:
        context.router_stats.append(RouterStats(assignment.counts, probs.sum(dim=0, dtype=torch.float32), len(x)))
    return cast(Tensor, experts(x, assignment, weights))


_mix_uncompiled = _disable_dynamo(_mix)  # torch.compiler.disable would import the compiler here and now
"""The same outside of compiled code, because how many tokens an expert has is known only when they are there."""


class Router(nn.Module):
    """Which experts a token goes through, and how much each of them counts; probabilities are computed in float32."""

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        moe = _moe_of(config)
        self.weight = nn.Parameter(torch.empty(moe.n_experts, config.hidden_size))
        self.shards: Shards = {"weight": None}  # every rank of tensor parallelism has a part of all experts
        self.top_k = moe.top_k
        self.normalize = moe.normalize_top_k

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities [T, X] of all experts, and weights [T, k] (dtype of `x`) and numbers [T, k] of the chosen."""
        logits = F.linear(x, self.weight)
        probs = logits.softmax(dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
        weights, chosen = probs.topk(self.top_k, dim=-1)
        if self.normalize:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return probs, weights.to(x.dtype), chosen


class ExpertLinear(nn.Module):
    """The weights [X, out, in] of a linear layer that each expert has."""

    def __init__(self, n_experts: int, n_in: int, n_out: int, *, split: Split) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, n_out, n_in))
        self.shards: Shards = {"weight": Shard(1 if split == "column" else 2)}


class Experts(nn.Module):
    """All experts: gated MLPs, each on the tokens that chose it."""

    split: Split = "column_row"

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        moe, size = _moe_of(config), config.hidden_size
        self.gate = ExpertLinear(moe.n_experts, size, config.expert_size, split="column")
        self.up = ExpertLinear(moe.n_experts, size, config.expert_size, split="column")
        self.down = ExpertLinear(moe.n_experts, config.expert_size, size, split="row")
        self.activation = ACTIVATION_FUNCTIONS[config.activation]

    def forward(self, x: Tensor, chosen: Assignment, weights: Tensor) -> Tensor:
        gate, up, down = self.gate.weight, self.up.weight, self.down.weight
        return grouped_expert_mlp(x, chosen, weights, gate, up, down, self.activation)


def load_balancing_loss(routing: Sequence[RouterStats]) -> Tensor:
    """`X * sum_e f_e p_e`: how unevenly tokens are spread over experts (Fedus et al., 2022, equations 4 to 6).

    `f_e` is how many of the `k` choices of a token fall on expert `e`, `p_e` its probability, both averaged over the
    tokens of all layers together, as `load_balancing_loss_func` of transformers does. With even routing it is `k`.

    Args:
        routing: of each layer with experts, from one or more forward passes. At least one.

    Returns:
        [] float32, differentiable with respect to the probabilities.
    """
    n_tokens = max(1, sum(each.n_tokens for each in routing))
    chosen = torch.stack([each.counts for each in routing]).sum(dim=0) / n_tokens
    probs = torch.stack([each.prob_sums for each in routing]).sum(dim=0) / n_tokens
    return len(probs) * (chosen * probs).sum()


def _moe_of(config: ReaLModelConfig) -> MoEConfig:
    assert config.moe is not None, "a block has experts only where the configuration says so"
    return config.moe
