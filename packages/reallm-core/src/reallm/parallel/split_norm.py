"""A norm over a dim of which each rank has a part, as over all heads together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from reallm.errors import ConfigError
from reallm.model.layers import LayerNorm, Norm, RMSNorm
from reallm.parallel.collectives import Peers, added_up_statistic


def split_norm(norm: Norm, peers: Peers, n_copies: int) -> Callable[[Tensor], Tensor]:
    """The forward pass of a norm over the parts [..., d] of all ranks together, in at least float32.

    Args:
        norm: with this rank's part of its parameters.
        peers: the ranks.
        n_copies: how many of them have the same part.

    Raises:
        ConfigError: it is neither `RMSNorm` nor `LayerNorm`.
    """
    if type(norm).forward not in (RMSNorm.forward, LayerNorm.forward):
        raise ConfigError(
            f"tensor parallelism would split what {type(norm).__qualname__} takes a mean over, and only RMSNorm and "
            "LayerNorm can be computed in parts; use tp=1"
        )
    centers = isinstance(norm, LayerNorm)

    def mean(x: Tensor) -> Tensor:
        n = x.shape[-1] * peers.size
        return added_up_statistic(x.sum(dim=-1, keepdim=True) / n, peers)

    def forward(x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if centers:
            wide = wide - mean(wide)
        out = wide * (mean(wide.square()) + norm.eps).rsqrt()
        if norm.weight is not None:
            out = out * (norm.weight + norm.offset)
        if norm.bias is not None:
            out = out + norm.bias
        return out.to(x.dtype)

    return forward
