"""`ExpertLinear`: the weights of one linear layer of all experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reallm.model.adapted import LowRank
from reallm.model.sharding import Shard, Shards, Split


class ExpertLinear(nn.Module):
    """Stacked weights [X, out, in], and biases [X, out], of a linear layer of each expert."""

    weight: Tensor
    bias_factor = 1.0
    """Factor on the bias: 0 where another rank adds it, since the outputs of the ranks are summed."""

    def __init__(self, n_experts: int, n_in: int, n_out: int, *, bias: bool, split: Split) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, n_out, n_in))
        self.bias = nn.Parameter(torch.empty(n_experts, n_out)) if bias else None
        self.shards: Shards = {"weight": Shard(1 if split == "column" else 2)}
        if bias:
            self.shards["bias"] = Shard(1) if split == "column" else None
        self.partial_grad = split == "row"

    @property
    def scaled_bias(self) -> Tensor | None:
        """The bias times `bias_factor`; a factor of 0 gives a gradient of 0, which ranks can sum."""
        return self.bias if self.bias is None or self.bias_factor == 1.0 else self.bias * self.bias_factor

    @property
    def adapter(self) -> LowRank | None:
        """What is added to the weights; None: nothing."""
        return None
