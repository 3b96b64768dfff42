"""The router of a mixture of experts: which experts compute a token, and with which weights.

Shapes: T packed tokens, E hidden, X experts, G groups of experts, k experts a token.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reallm.model.config import MoEConfig, ReaLModelConfig, is_custom_class
from reallm.model.layers import custom_layer
from reallm.model.products.linear import linear
from reallm.model.sharding import Shards


class Router(nn.Module):
    """Chooses the experts of each token and their weights, by scores in at least float32.

    The scores are a softmax of logits, or sigmoids; the choice can be limited to some groups of experts, and corrected
    by a bias that balances them (DeepSeek-V3, 2024, equations 12 to 16).
    """

    exact = False
    weight: Tensor

    def __init__(self, config: ReaLModelConfig) -> None:
        super().__init__()
        self.moe = moe = moe_of(config)
        self.weight = nn.Parameter(torch.empty(moe.n_experts, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(moe.n_experts)) if moe.router_bias else None
        # each expert is split, so every rank has a part of every expert
        self.shards: Shards = {name: None for name, _ in self.named_parameters()}
        self.correction_bias: nn.Parameter | None = None
        if moe.correction_bias:
            self.correction_bias = nn.Parameter(torch.empty(moe.n_experts), requires_grad=False)
            self.shards["correction_bias"] = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities [T, X] of all experts, and weights [T, k] (dtype of `x`) and indices [T, k] of the chosen."""
        moe, wide = self.moe, torch.promote_types(x.dtype, torch.float32)
        router_dtype = wide if moe.float32_logits else x.dtype
        bias = None if self.bias is None else self.bias.to(router_dtype)
        logits = linear(x.to(router_dtype), self.effective_weight().to(router_dtype), bias, exact=self.exact)
        if moe.scores == "softmax":
            probs = scores = logits.softmax(dim=-1, dtype=wide)
        else:
            scores = logits.to(wide).sigmoid()
            probs = scores / scores.sum(dim=-1, keepdim=True)
        weights, chosen = self._choose(scores)
        if moe.normalize_top_k:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        if moe.scaling_factor != 1.0:
            weights = weights * moe.scaling_factor
        return probs, weights.to(x.dtype), chosen

    def effective_weight(self) -> Tensor:
        """The weight [X, E] that the logits are computed with."""
        return self.weight

    def _choose(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and indices [T, k] of the chosen experts."""
        if self.correction_bias is None and self.moe.n_groups == 1:
            return scores.topk(self.moe.top_k, dim=-1)
        ranked = scores.detach()
        if self.correction_bias is not None:
            ranked = ranked + self.correction_bias
        chosen = self._in_best_groups(ranked).topk(self.moe.top_k, dim=-1).indices
        return scores.gather(-1, chosen), chosen

    def _in_best_groups(self, ranked: Tensor) -> Tensor:
        """`ranked` [T, X], with -infinity for experts outside of each token's best groups."""
        moe = self.moe
        if moe.n_groups == 1:
            return ranked
        grouped = ranked.unflatten(-1, (moe.n_groups, -1))  # [T, G, X / G]
        group_scores = grouped.topk(moe.group_top_scores, dim=-1).values.sum(dim=-1)
        best = group_scores.topk(moe.top_k_groups, dim=-1).indices
        is_other = torch.ones_like(group_scores, dtype=torch.bool).scatter_(-1, best, value=False)
        return grouped.masked_fill(is_other.unsqueeze(-1), float("-inf")).flatten(-2)

    def fresh_parameter(self, name: str, generator: torch.Generator) -> Tensor | None:
        """The initial correction bias is zero."""
        return torch.zeros(self.moe.n_experts) if name == "correction_bias" else None


def make_router(config: ReaLModelConfig) -> nn.Module:
    """The router that the configuration names; a family's own class is made and called as `Router` is."""
    router = moe_of(config).router
    return custom_layer(router, config) if is_custom_class(router) else Router(config)


def moe_of(config: ReaLModelConfig) -> MoEConfig:
    """The configuration's experts."""
    assert config.moe is not None, "a block has experts only where the configuration says so"
    return config.moe
