"""What ranks of tensor parallelism tell each other, and the derivative of each.

| function | forward | backward |
|---|---|---|
| `copy_to_tp_region` | nothing | gradients are added up |
| `reduce_from_tp_region` | parts are added up | nothing |
| `all_reduce_sum` | parts are added up | gradients are added up |
| `joined` | parts are put together | this rank's part of the gradient |

With sequence parallelism (Korthikanti et al., 2022) tokens are spread over the ranks outside of the layers that are
split. `T` is then the number of all tokens, of which each rank has as many, the last ones padded with zeros:

| function | forward | backward |
|---|---|---|
| `scatter_to_sp_region` | this rank's tokens | tokens are put together |
| `gather_from_sp_region` | tokens are put together | this rank's tokens |
| `all_tokens_shared` | tokens are put together | this rank's tokens of the sum |
| `reduce_scatter_to_sp_region` | this rank's tokens of the sum | tokens are put together |
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
    """Ranks that talk to each other, as one of them. What they give has the same shape and type on all."""

    @property
    def rank(self) -> int:
        """Among them, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """`x` after the sum over all has taken its place."""

    def all_reduce_max(self, x: Tensor) -> Tensor:
        """`x` after the largest of all has taken its place, element by element."""

    def gather(self, x: Tensor) -> Tensor:
        """What all have, one after another along the first dim."""

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """Of the sum over all, the part along the first dim whose turn it is, as many parts as ranks."""


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

    def gather(self, x: Tensor) -> Tensor:
        """See `Peers`."""
        whole = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        all_gather_single(whole, x.contiguous(), group=self._group)
        return whole

    def reduce_scatter(self, x: Tensor) -> Tensor:
        """See `Peers`."""
        own = x.new_empty(x.shape[0] // self.size, *x.shape[1:])
        reduce_scatter_single(own, x.contiguous(), group=self._group)
        return own


def copy_to_tp_region(x: Tensor, peers: Peers) -> Tensor:
    """`x`, which all ranks have and each computes something else with."""
    return cast(Tensor, _SharedInput.apply(x, peers)) if torch.is_grad_enabled() else x


def reduce_from_tp_region(x: Tensor, peers: Peers) -> Tensor:
    """The sum of what the ranks have, with which all go on alike."""
    return cast(Tensor, _AddedUp.apply(x, peers)) if torch.is_grad_enabled() else peers.all_reduce_sum(x.contiguous())


def all_reduce_sum(x: Tensor, peers: Peers) -> Tensor:
    """The sum of what the ranks have, with which each goes on otherwise; `x` stays as it is."""
    return cast(Tensor, _AddedUpStatistic.apply(x, peers))


def gather_from_tp_region(x: Tensor, peers: Peers, sizes: Sequence[int]) -> Tensor:
    """Parts [N, v] of the ranks, put together along the last dim; `sizes` are the `v` of all ranks."""
    return cast(Tensor, _Joined.apply(x, peers, tuple(sizes)))


def scatter_to_sp_region(x: Tensor, peers: Peers) -> Tensor:
    """[T, ...] -> this rank's tokens, padded."""
    return cast(Tensor, _OwnTokens.apply(x, peers))


def gather_from_sp_region(x: Tensor, peers: Peers, n_tokens: int) -> Tensor:
    """This rank's tokens -> [T, ...], with which all go on alike."""
    return cast(Tensor, _AllTokens.apply(x, peers, n_tokens))


def all_tokens_shared(x: Tensor, peers: Peers, n_tokens: int) -> Tensor:
    """This rank's tokens -> [T, ...], with which each rank computes something else."""
    return cast(Tensor, _AllTokensShared.apply(x, peers, n_tokens))


def reduce_scatter_to_sp_region(x: Tensor, peers: Peers) -> Tensor:
    """[T, ...] parts of a sum -> the sum for this rank's tokens, padded."""
    return cast(Tensor, _OwnTokensAddedUp.apply(x, peers))


class _SharedInput(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.peers.all_reduce_sum(_own_memory(grad)), None


class _AddedUp(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        return peers.all_reduce_sum(_own_memory(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _AddedUpStatistic(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers = peers
        return peers.all_reduce_sum(_own_memory(x))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.peers.all_reduce_sum(_own_memory(grad)), None


class _Joined(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers, sizes: tuple[int, ...]) -> Tensor:
        start = sum(sizes[: peers.rank])
        ctx.own = slice(start, start + sizes[peers.rank])
        widest = max(sizes)
        parts = peers.gather(F.pad(x, (0, widest - x.shape[-1]))).chunk(peers.size)
        return torch.cat([part[..., :size] for part, size in zip(parts, sizes, strict=True)], dim=-1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[..., ctx.own], None, None


class _OwnTokens(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers, ctx.n_tokens = peers, x.shape[0]
        return _padded(x, peers).chunk(peers.size)[peers.rank].clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.peers.gather(grad)[: ctx.n_tokens], None


class _AllTokens(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers, n_tokens: int) -> Tensor:
        ctx.peers = peers
        return peers.gather(x)[:n_tokens]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _padded(grad, ctx.peers).chunk(ctx.peers.size)[ctx.peers.rank], None, None


class _AllTokensShared(_AllTokens):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.peers.reduce_scatter(_padded(grad, ctx.peers)), None, None


class _OwnTokensAddedUp(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, peers: Peers) -> Tensor:
        ctx.peers, ctx.n_tokens = peers, x.shape[0]
        return peers.reduce_scatter(_padded(x, peers))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.peers.gather(grad)[: ctx.n_tokens], None


def _padded(x: Tensor, peers: Peers) -> Tensor:
    """[T, ...] with zeros at the end, so that it divides by the number of ranks."""
    missing = -x.shape[0] % peers.size
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, missing)) if missing else x


def _own_memory(x: Tensor) -> Tensor:
    """A copy: autograd may hand the same gradient to several, and keep what went into a function."""
    return x.clone(memory_format=torch.contiguous_format)
