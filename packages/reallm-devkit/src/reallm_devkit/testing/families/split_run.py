"""Tensor parallelism in one process: each rank is a thread with its shard of every parameter.

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

from reallm.errors import ConfigError, PluginError, one_line
from reallm.model.packed import PackedSequences
from reallm.model.parameters import parameter_info
from reallm.model.sharding import Shard
from reallm.model.transformer import Transformer
from reallm.parallel.sharding import BoxesByRank, tp_box
from reallm.parallel.tensor_parallel.apply import apply_tensor_parallel


class CannotSplitError(Exception):
    """A parameter cannot be sharded over this number of ranks."""


class RankError(Exception):
    """An exception of a rank, with the path of the module that it ran last."""

    def __init__(self, path: str, cause: BaseException) -> None:
        self.path, self.cause = path, cause
        super().__init__(f"{type(cause).__name__}: {one_line(cause)}")


@dataclass(frozen=True)
class DeclaredSharding:
    """How a network is sharded: the `Shard` of each parameter, and the `split` of each module that has one."""

    shards: Mapping[str, Shard | None]
    splits: Mapping[str, str]

    @classmethod
    def of(cls, model: Transformer) -> DeclaredSharding:
        """The declarations of a model's layers."""
        return cls(model.parameter_shards(), model.module_splits())

    def boxes(self, model: Transformer, n_ranks: int) -> BoxesByRank:
        """The box of each parameter, by rank.

        Raises:
            CannotSplitError: a parameter has too few units for the ranks, or does not divide into whole units.
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
    """The results of a split forward and backward pass."""

    logits: Tensor
    """[T, V]."""
    gradients: Sequence[Mapping[str, Tensor]]
    """By rank: the gradient of `loss_of(logits)` for each shard, before any reduction between ranks."""
    outputs: Mapping[str, Tensor]
    """Outputs of the requested modules on rank 0."""


@dataclass
class _Exchange:
    """All-gathers values between threads."""

    n_ranks: int
    barrier: threading.Barrier = field(init=False)
    values: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.n_ranks)
        self.values = [None] * self.n_ranks

    def all_gather(self, rank: int, value: Any) -> list[Any]:
        """The values of all ranks, by rank."""
        self.values[rank] = value
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()  # no rank writes the next value before all have read these
        return values


class _ThreadPeers:
    """Collectives between threads, as one rank; see `parallel.tensor_parallel.mappings.Peers`."""

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
        return self._exchange.all_gather(
            self.rank, x.detach().clone()
        )  # a copy, since its rank may write to x afterwards


def loss_of(logits: Tensor) -> Tensor:
    """A scalar that weights every logit by another random number."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(7), dtype=logits.dtype)
    return (logits * weights).sum()


def run_split(
    model: Transformer,
    declared: DeclaredSharding,
    n_ranks: int,
    tokens: Tensor,
    cu_seqlens: Tensor,
    output_modules: Sequence[str] = (),
) -> SplitRun:
    """Run a forward and a backward pass of a model that is sharded over ranks.

    Args:
        model: the unsplit model.
        declared: how it is sharded.
        n_ranks: the tensor-parallel size.
        tokens: packed tokens [T].
        cu_seqlens: [S+1].
        output_modules: paths of modules whose outputs are returned, as they are after reductions.

    Raises:
        CannotSplitError: a parameter has too few units for the ranks, or does not divide into whole units.
        RankError: a rank's computation failed.
    """
    exchange, outputs, last_module = _Exchange(n_ranks), dict[str, Tensor](), [""] * n_ranks
    boxes, ranks = declared.boxes(model, n_ranks), list[Transformer]()
    for rank in range(n_ranks):
        ranks.append(copy.deepcopy(model))
        for path, module in ranks[rank].named_modules():
            if path:
                record = lambda _, __, path=path, rank=rank: last_module.__setitem__(rank, path)  # noqa: E731
                module.register_forward_pre_hook(record)
        apply_tensor_parallel(ranks[rank], _ThreadPeers(rank, exchange), boxes, declared.shards, declared.splits)
    for path in output_modules:
        record_output = lambda _, __, out, path=path: outputs.update({path: out.detach()})  # noqa: E731
        ranks[0].get_submodule(path).register_forward_hook(record_output)
    logits, errors = dict[int, Tensor](), dict[int, BaseException]()

    def run_rank(rank: int) -> None:
        try:
            seqs = PackedSequences.from_cu_seqlens(cu_seqlens, tokens)
            out = ranks[rank].head(ranks[rank].forward_hidden(tokens, seqs))
            logits[rank] = out.detach()
            loss_of(out).backward()
        except threading.BrokenBarrierError:
            pass  # another rank has failed
        except Exception as error:  # custom layers may raise anything when they get a shard only
            errors[rank] = error
            exchange.barrier.abort()

    threads = [threading.Thread(target=run_rank, args=(rank,), daemon=True) for rank in range(n_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for rank, error in errors.items():
        raise RankError(last_module[rank], error) from error
    return SplitRun(logits[0], [_gradients(rank) for rank in ranks], outputs)


def _gradients(model: Transformer) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
