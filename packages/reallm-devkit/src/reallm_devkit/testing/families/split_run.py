"""Tensor parallelism on one process: each rank is a thread with its part of every parameter, and they run in lockstep.

Layers are split as in a real run (`parallel.tensor_parallel`); only the collectives are different.

Shapes: T packed tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reallm.errors import ConfigError, PluginError
from reallm.model.packed import PackedSequences
from reallm.model.parameters import parameter_info
from reallm.model.sharding import Shard
from reallm.model.transformer import Transformer
from reallm.parallel.sharding import BoxesByRank, tp_box
from reallm.parallel.tensor_parallel.apply import apply_tensor_parallel


class CannotSplitError(Exception):
    """A parameter cannot be divided among so many ranks."""


class RankError(Exception):
    """What a rank raised, and the module in which it did."""

    def __init__(self, path: str, cause: BaseException) -> None:
        self.path, self.cause = path, cause
        super().__init__(f"{type(cause).__name__}: {' '.join(str(cause).split())}")


@dataclass(frozen=True)
class Declared:
    """How a network may be split: the shard of each parameter, and `split` of each module that has one."""

    shards: Mapping[str, Shard | None]
    splits: Mapping[str, str]

    @classmethod
    def of(cls, model: Transformer) -> Declared:
        """What the layers say."""
        return cls(model.parameter_shards(), model.module_splits())

    def parts(self, model: Transformer, n_ranks: int) -> BoxesByRank:
        """Which part of each parameter of a network each rank has.

        Raises:
            CannotSplitError: a parameter has too few units for the ranks, or does not divide into whole ones.
        """
        try:
            infos = [
                parameter_info(name, tuple(parameter.shape), self.shards[name], self.splits, model.config)
                for name, parameter in model.named_parameters()
            ]
            return [{info.name: tp_box(info, n_ranks, rank) for info in infos} for rank in range(n_ranks)]
        except (ConfigError, PluginError) as error:
            raise CannotSplitError(str(error)) from error


@dataclass(frozen=True)
class SplitRun:
    """What came out."""

    logits: Tensor
    """[T, V]."""
    gradients: Sequence[Mapping[str, Tensor]]
    """By rank, of `loss_of` the logits with respect to each part, before ranks add any of them up."""
    heard: Mapping[str, Tensor]
    """What rank 0 had at some modules."""


@dataclass
class _Exchange:
    """Where ranks show each other a value each."""

    n_ranks: int
    barrier: threading.Barrier = field(init=False)
    values: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.n_ranks)
        self.values = [None] * self.n_ranks

    def all(self, rank: int, value: Any) -> list[Any]:
        """The values of all ranks, by rank."""
        self.values[rank] = value
        self.barrier.wait()
        found = list(self.values)
        self.barrier.wait()  # nobody shows the next one before all have seen these
        return found


class _Threads:
    """The threads that play the ranks, as one of them; see `parallel.tensor_parallel.mappings.Peers`."""

    def __init__(self, rank: int, exchange: _Exchange) -> None:
        self.rank, self.size, self._exchange = rank, exchange.n_ranks, exchange

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        return x.copy_(torch.stack(self._all(x)).sum(dim=0))

    def all_reduce_max(self, x: Tensor) -> Tensor:
        return x.copy_(torch.stack(self._all(x)).amax(dim=0))

    def all_gather(self, x: Tensor) -> Tensor:
        return torch.cat(self._all(x))

    def reduce_scatter(self, x: Tensor) -> Tensor:
        return torch.stack(self._all(x)).sum(dim=0).chunk(self.size)[self.rank]

    def _all(self, x: Tensor) -> list[Tensor]:
        return self._exchange.all(self.rank, x.detach().clone())  # a copy: its owner goes on, and may write to it


def loss_of(logits: Tensor) -> Tensor:
    """A number that depends on all logits, each with a weight of its own."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(7), dtype=logits.dtype)
    return (logits * weights).sum()


def run_split(
    model: Transformer,
    declared: Declared,
    n_ranks: int,
    tokens: Tensor,
    cu_seqlens: Tensor,
    listen_to: Sequence[str] = (),
) -> SplitRun:
    """A forward and a backward pass of `model` divided among ranks.

    Args:
        model: the whole.
        declared: how it may be split.
        n_ranks: how many ranks.
        tokens: [T] of a pack.
        cu_seqlens: [S+1] its bounds.
        listen_to: modules whose outputs are wanted, as they are after ranks have added them up.

    Raises:
        CannotSplitError: a parameter has too few units for the ranks, or does not divide into whole ones.
        RankError: a rank's computation failed.
    """
    exchange, heard, entered = _Exchange(n_ranks), dict[str, Tensor](), [""] * n_ranks
    parts, ranks = declared.parts(model, n_ranks), list[Transformer]()
    for rank in range(n_ranks):
        ranks.append(copy.deepcopy(model))
        for path, module in ranks[rank].named_modules():
            if path:
                note = lambda _, __, path=path, rank=rank: entered.__setitem__(rank, path)  # noqa: E731
                module.register_forward_pre_hook(note)
        apply_tensor_parallel(ranks[rank], _Threads(rank, exchange), parts, declared.shards, declared.splits)
    for path in listen_to:
        listen = lambda _, __, out, path=path: heard.update({path: out.detach()})  # noqa: E731
        ranks[0].get_submodule(path).register_forward_hook(listen)
    logits, errors = dict[int, Tensor](), dict[int, BaseException]()

    def work(rank: int) -> None:
        try:
            seqs = PackedSequences.from_cu_seqlens(cu_seqlens, tokens)
            out = ranks[rank].head(ranks[rank].forward_hidden(tokens, seqs))
            logits[rank] = out.detach()
            loss_of(out).backward()
        except threading.BrokenBarrierError:
            pass  # another one has failed
        except Exception as error:  # an author's layers raise whatever they like when they get a part only
            errors[rank] = error
            exchange.barrier.abort()

    threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(n_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank, error in errors.items():
        raise RankError(entered[rank], error) from error
    return SplitRun(logits[0], [_gradients(rank) for rank in ranks], heard)


def _gradients(model: Transformer) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
