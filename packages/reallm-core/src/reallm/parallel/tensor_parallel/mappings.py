"""Collectives of tensor parallelism, with their derivatives; names as in Megatron's `tensor_parallel/mappings.py`.

| function | forward | backward |
|---|---|---|
| `copy_to_tp_region` (Megatron's f) | identity | all-reduce |
| `reduce_from_tp_region` (Megatron's g) | all-reduce | identity |
| `all_reduce_sum` | all-reduce | all-reduce |
| `gather_from_tp_region` | all-gather along the last dim | this rank's slice |

With sequence parallelism (Korthikanti et al., 2022) ranks also split the tokens, outside of split layers. `T` is
the number of all tokens; each rank has `ceil(T / ranks)` of them, the last ones padded with zeros:

| function | forward | backward |
|---|---|---|
| `scatter_to_sp_region` | this rank's tokens | all-gather |
| `gather_from_sp_region` | all-gather | this rank's tokens |
| `gather_from_sp_region(..., reduce_scatter_grad=True)` (g-bar) | all-gather | reduce-scatter |
| `reduce_scatter_to_sp_region` (f-bar) | reduce-scatter | all-gather |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from reallm.parallel.mesh import Group, all_gather_single, reduce_scatter_single


class Peers(Protocol):
    """The ranks of a tensor-parallel group, seen from one of them; all pass tensors of the same shape and dtype."""

    @property
    def rank(self) -> int:
        """This rank's number in the group, from 0."""

    @property
    def size(self) -> int:
        """Number of ranks."""

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """Sum over the ranks, in place; returns `x`."""

    def all_reduce_max(self, x: Tensor) -> Tensor:
        """Elementwise maximum over the ranks, in place; returns `x`."""

    def all_gather(self, x: Tensor) -> Tensor:
        """Tensors of all ranks, concatenated along the first dim."""

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Sum over the ranks; each rank gets an equal slice of the sum along the first dim."""


class GroupPeers:
    """The ranks of a process group."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.rank, self.size = group.rank(), group.size()

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """See `Peers`."""
        dist.all_reduce(x, group=self._group)
        return x

    def all_reduce_max(self, x: Tensor) -> Tensor:
        """See `Peers`."""
        dist.all_reduce(x, dist.ReduceOp.MAX, group=self._group)
        return x

    def all_gather(self, x: Tensor) -> Tensor:
        """See `Peers`."""
        out = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        all_gather_single(out, x.contiguous(), group=self._group)
        return out

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """See `Peers`."""
        out = x.new_empty(x.shape[0] // self.size, *x.shape[1:])
        reduce_scatter_single(out, x.contiguous(), group=self._group)
        return out


def copy_to_tp_region(x: Tensor, peers: Peers) -> Tensor:
    """Identity forward, all-reduce backward (Megatron's f): each rank computes something different with `x`."""
    return cast(Tensor, _CopyToTPRegion.apply(x, peers)) if torch.is_grad_enabled() else x


def reduce_from_tp_region(x: Tensor, peers: Peers) -> Tensor:
    """All-reduce forward, identity backward (Megatron's g): all ranks compute the same with the sum."""
    if not torch.is_grad_enabled():
        return peers.all_reduce_sum(x.contiguous())
    return cast(Tensor, _ReduceFromTPRegion.apply(x, peers))


def all_reduce_sum(x: Tensor, peers: Peers) -> Tensor:
    """All-reduce forward and backward: each rank computes something different with the sum. `x` is not changed."""
    return cast(Tensor, _AllReduceSum.apply(x, peers))


def gather_from_tp_region(x: Tensor, peers: Peers, sizes: Sequence[int]) -> Tensor:
    """All-gather forward, this rank's slice backward: [N, v] -> [N, V]; `sizes` are the `v` of all ranks."""
    return cast(Tensor, _GatherFromTPRegion.apply(x, peers, tuple(sizes)))


def scatter_to_sp_region(x: Tensor, peers: Peers) -> Tensor:
    """Slice forward, all-gather backward: [T, ...] -> this rank's tokens, padded."""
    return cast(Tensor, _ScatterToSPRegion.apply(x, peers))


def gather_from_sp_region(x: Tensor, peers: Peers, n_tokens: int, *, reduce_scatter_grad: bool = False) -> Tensor:
    """All-gather forward, slice or reduce-scatter backward: this rank's tokens -> [T, ...].

    Args:
        x: this rank's tokens, padded.
        peers: the ranks.
        n_tokens: T.
        reduce_scatter_grad: whether each rank computes something different with the result, so that its gradients are
            partial (Megatron's `tensor_parallel_output_grad`). If not, all ranks have the same gradient.
    """
    return cast(Tensor, _GatherFromSPRegion.apply(x, peers, n_tokens, reduce_scatter_grad))


def reduce_scatter_to_sp_region(x: Tensor, peers: Peers) -> Tensor:
    """Reduce-scatter forward, all-gather backward: partial sums [T, ...] -> this rank's tokens of the sum, padded."""
    return cast(Tensor, _ReduceScatterToSPRegion.apply(x, peers))


class _CopyToTPRegion(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.peers.all_reduce_sum(_copy(grad)), None


class _ReduceFromTPRegion(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        return peers.all_reduce_sum(_copy(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _AllReduceSum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        return peers.all_reduce_sum(_copy(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.peers.all_reduce_sum(_copy(grad)), None


class _GatherFromTPRegion(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers, sizes: tuple[int, ...]) -> Tensor:
        start = sum(sizes[: peers.rank])
        ctx.slice = slice(start, start + sizes[peers.rank])
        padded = F.pad(x, (0, max(sizes) - x.shape[-1]))
        by_rank = peers.all_gather(padded).chunk(peers.size)
        return torch.cat([each[..., :size] for each, size in zip(by_rank, sizes, strict=True)], dim=-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[..., ctx.slice], None, None


class _ScatterToSPRegion(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers, ctx.n_tokens = peers, x.shape[0]
        return _pad_tokens(x, peers).chunk(peers.size)[peers.rank].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.peers.all_gather(grad)[: ctx.n_tokens], None


class _GatherFromSPRegion(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers, n_tokens: int, reduce_scatter_grad: bool) -> Tensor:
        ctx.peers, ctx.reduce_scatter_grad = peers, reduce_scatter_grad
        return peers.all_gather(x)[:n_tokens]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        peers, padded = ctx.peers, _pad_tokens(grad, ctx.peers)
        if ctx.reduce_scatter_grad:
            return peers.reduce_scatter(padded), None, None, None
        return padded.chunk(peers.size)[peers.rank], None, None, None


class _ReduceScatterToSPRegion(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers, ctx.n_tokens = peers, x.shape[0]
        return peers.reduce_scatter(_pad_tokens(x, peers))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.peers.all_gather(grad)[: ctx.n_tokens], None


def _pad_tokens(x: Tensor, peers: Peers) -> Tensor:
    """Pad [T, ...] with zeros at the end, so that its length is a multiple of the number of ranks."""
    missing = -x.shape[0] % peers.size
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else x


def _copy(x: Tensor) -> Tensor:
    """A contiguous copy to reduce in place: autograd may pass the same gradient elsewhere, or keep an input."""
    return x.clone(memory_format=torch.contiguous_format)
