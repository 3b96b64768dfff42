"""Tensor parallelism on one process: each rank is a thread with its part of every parameter, and they run in lockstep.

What ranks tell each other is what a real run would: modules with `split = "in"` are added up, a norm over a dim that is
split sees all of it, embedding and head have a part of the vocabulary each.

Shapes: T packed tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from reallm.model.layers import Norm, TokenTable
from reallm.model.sequences import Sequences
from reallm.model.shard import Shard
from reallm.model.transformer import Transformer


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
        splits = {path: module.split for path, module in model.named_modules() if hasattr(module, "split")}
        return cls(model.parameter_shards(), {path: str(split) for path, split in splits.items()})


@dataclass(frozen=True)
class SplitRun:
    """What came out: logits [T, V] put together, and what rank 0 had at some modules."""

    logits: Tensor
    heard: Mapping[str, Tensor]


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


@torch.no_grad()
def run_split(
    model: Transformer,
    declared: Declared,
    n_ranks: int,
    tokens: Tensor,
    cu_seqlens: Tensor,
    listen_to: Sequence[str] = (),
) -> SplitRun:
    """The forward pass of `model` divided among ranks.

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
    exchange, heard = _Exchange(n_ranks), dict[str, Tensor]()
    entered = [""] * n_ranks
    ranks = [_part(model, declared, rank, n_ranks, exchange, entered) for rank in range(n_ranks)]
    for path in listen_to:
        ranks[0].get_submodule(path).register_forward_hook(lambda _, __, out, path=path: heard.update({path: out}))
    results: list[Tensor | None] = [None] * n_ranks
    errors: dict[int, BaseException] = {}

    def work(rank: int) -> None:
        try:
            with torch.no_grad():  # of this thread
                seqs = Sequences.from_cu_seqlens(cu_seqlens, tokens)
                results[rank] = ranks[rank].head(ranks[rank].run(tokens, seqs))
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
    parts = [result for result in results if result is not None]
    widths = sum(part.shape[-1] for part in parts)
    whole = torch.cat(parts, dim=-1) if widths == model.config.vocab_size else parts[0]
    return SplitRun(whole, heard)


def cut(tensor: Tensor, shard: Shard | None, rank: int, n_ranks: int) -> Tensor:
    """The part of a parameter that a rank has. Where there are fewer units than ranks, several have the same one."""
    if shard is None:
        return tensor
    if not -tensor.dim() <= shard.dim < tensor.dim():
        raise CannotSplitError(f"{shard} of a parameter of shape {list(tensor.shape)}")
    size = tensor.shape[shard.dim]
    if size % shard.unit:
        raise CannotSplitError(f"dim {shard.dim} of {list(tensor.shape)} is no multiple of unit={shard.unit}")
    n_units = size // shard.unit
    if n_units % n_ranks == 0 or (shard.unit == 1 and n_units > n_ranks):
        bounds = [place * n_units // n_ranks * shard.unit for place in (rank, rank + 1)]
        return tensor.narrow(shard.dim, bounds[0], bounds[1] - bounds[0])
    if n_ranks % n_units == 0:
        return tensor.narrow(shard.dim, rank * n_units // n_ranks * shard.unit, shard.unit)
    raise CannotSplitError(f"{n_units} units of dim {shard.dim} for {n_ranks} ranks")


def _part(
    model: Transformer, declared: Declared, rank: int, n_ranks: int, exchange: _Exchange, entered: list[str]
) -> Transformer:
    """The network of one rank."""
    part = copy.deepcopy(model)
    modules = dict(part.named_modules())
    for name, parameter in part.named_parameters():
        path, _, own_name = name.rpartition(".")
        shard = declared.shards[name]
        is_added_up = any(
            path == one or path.startswith(f"{one}.") for one, split in declared.splits.items() if split == "in"
        )
        if shard is not None and is_added_up and parameter.shape[shard.dim] // shard.unit < n_ranks:
            raise CannotSplitError(f"'{name}' has {parameter.shape[shard.dim] // shard.unit} units for {n_ranks} ranks")
        value = cut(parameter, shard, rank, n_ranks).clone()
        is_added_once = declared.splits.get(path) == "in" and own_name == "bias" and shard is None
        value = torch.zeros_like(value) if is_added_once and rank else value
        setattr(modules[path], own_name, nn.Parameter(value, requires_grad=False))
    for path, module in modules.items():
        if path:
            module.register_forward_pre_hook(lambda _, __, path=path: entered.__setitem__(rank, path))
        if isinstance(module, TokenTable) and declared.shards[f"{path}.weight"] is not None:
            start = _start(model.get_parameter(f"{path}.weight"), declared.shards[f"{path}.weight"], rank, n_ranks)
            _replace_forward(module, _embedding(module, start, rank, exchange))
        elif isinstance(module, Norm) and module.over_shards:
            _replace_forward(module, _norm_over_all(module, rank, exchange))
        elif declared.splits.get(path) == "in" and not path.endswith(f"layers.{model.config.n_layers + 1}.out"):
            module.register_forward_hook(lambda _, __, out: sum(exchange.all(rank, out)))
    return part


def _start(whole: Tensor, shard: Shard | None, rank: int, n_ranks: int) -> int:
    """The first row of a rank's part."""
    assert shard is not None
    return sum(cut(whole, shard, before, n_ranks).shape[0] for before in range(rank))


def _replace_forward(module: nn.Module, forward: Callable[..., Tensor]) -> None:
    module.forward = forward


def _embedding(module: TokenTable, start: int, rank: int, exchange: _Exchange) -> Callable[[Tensor], Tensor]:
    def forward(tokens: Tensor) -> Tensor:
        n_rows = len(module.weight)
        is_here = (tokens >= start) & (tokens < start + n_rows)
        rows = F.embedding((tokens - start).clamp(0, n_rows - 1), module.weight) * is_here[:, None]
        total: Tensor = sum(exchange.all(rank, rows))
        return total

    return forward


def _norm_over_all(module: Norm, rank: int, exchange: _Exchange) -> Callable[[Tensor], Tensor]:
    whole_forward = type(module).forward

    def forward(x: Tensor) -> Tensor:
        own = {name: parameter.data for name, parameter in module.named_parameters()}
        shown = exchange.all(rank, (x, own))
        everything = torch.cat([one for one, _ in shown], dim=-1)
        parameters = {name: torch.cat([of_rank[name] for _, of_rank in shown]) for name in own}
        plain = copy.copy(module)
        plain.__dict__.pop("forward")
        assert type(plain).forward is whole_forward
        out: Tensor = functional_call(plain, parameters, (everything,))
        start = sum(one.shape[-1] for one, _ in shown[:rank])
        return out[..., start : start + x.shape[-1]]

    return forward
