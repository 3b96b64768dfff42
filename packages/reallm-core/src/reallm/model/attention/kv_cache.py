"""The KV cache: tensors that attention layers keep of earlier tokens, in shapes that the layers declare.

Shapes: S sequences, K KV heads, C capacity in tokens, D head dim, T packed tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from reallm.errors import ConfigError, PluginError
from reallm.model.config import ReaLModelConfig
from reallm.model.sharding import Shard

if TYPE_CHECKING:
    from reallm.model.attention.functional import AttentionSpec


@dataclass(frozen=True)
class CacheTensor:
    """One tensor that an attention layer keeps for decoding, as the layer declares it.

    Keys of grouped-query attention are `CacheTensor((K, D), shard=Shard(0))`, a latent of R numbers a token is
    `CacheTensor((R,))`, the state of a recurrence is `CacheTensor((H, D, D), per_token=False, shard=Shard(0))`.
    """

    shape: tuple[int, ...]
    """Shape for one token, or without `per_token` for one sequence; of the whole layer, before tensor parallelism."""
    per_token: bool = True
    """Whether there is one for each token; else one for each sequence, which the layer updates."""
    shard: Shard | None = None
    """Tensor-parallel split of `shape`; fewer units than ranks are replicated. None: every rank has all of it."""
    dtype: torch.dtype | None = None
    """Dtype of the tensor; None: the dtype of the parameters."""

    def local_shape(self, tp: int) -> tuple[int, ...]:
        """`shape` on one of `tp` ranks.

        Raises:
            ConfigError: the units neither divide by the ranks nor the ranks by the units.
        """
        if self.shard is None or tp == 1:
            return self.shape
        dim, unit = self.shard.dim % len(self.shape), self.shard.unit
        n_units = self.shape[dim] // unit
        if n_units % tp and tp % n_units:
            raise ConfigError(f"tp={tp} does not fit a cache of {n_units} units {list(self.shape)}; use another tp")
        return (*self.shape[:dim], max(1, n_units // tp) * unit, *self.shape[dim + 1 :])

    def local_bytes(self, tp: int, dtype: torch.dtype) -> int:
        """Bytes for one token, or one sequence, on one of `tp` ranks whose parameters have this dtype."""
        return math.prod(self.local_shape(tp)) * (self.dtype or dtype).itemsize

    def allocate(self, n_sequences: int, capacity: int, tp: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Zeros [S, *shape], with the dim of tokens, if there is one, before the last dim: keys are [S, K, C, D]."""
        shape = self.local_shape(tp)
        if self.per_token:
            shape = (*shape[:-1], capacity, *shape[-1:])
        return torch.zeros(n_sequences, *shape, dtype=self.dtype or dtype, device=device)


CacheSpec = tuple[CacheTensor, ...]
"""The tensors that an attention layer keeps for decoding, declared in its attribute `cache_spec`: first those with a
part for each token, then the states of sequences."""


def n_per_token(spec: CacheSpec) -> int:
    """How many tensors, the first ones, have a part for each token; the others are states.

    Raises:
        PluginError: a tensor per token is declared behind a state.
    """
    n = sum(each.per_token for each in spec)
    if not all(each.per_token for each in spec[:n]):
        raise PluginError("cache_spec has a state before a tensor per token; put those with per_token=False last")
    return n


class BlockCache(ABC):
    """What one block keeps of the sequences of a forward pass, wherever it is.

    The first sequences of a pass may be such of which nothing is cached; they are `started`.
    """

    @property
    @abstractmethod
    def n_started(self) -> int:
        """Number of tokens of the started sequences, whose attention needs nothing that is cached."""

    @abstractmethod
    def append(self, *new: Tensor) -> None:
        """Write what the block keeps of all tokens of the pass: keys, and values unless they are the same; [T, K, D]
        each."""

    @abstractmethod
    def attend_started(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        """Attention of the tokens of the started sequences; shapes as in `attend_rotated`."""

    @abstractmethod
    def attend_cached(self, q: Tensor, spec: AttentionSpec) -> Tensor:
        """Attention of the queries [T, H, D] of all other tokens, once they are appended, over what is cached.

        If the block keeps one tensor, keys are also the values.
        """

    @abstractmethod
    def read_states(self) -> tuple[Tensor, ...]:
        """What the block keeps of each sequence, before the tokens of the pass; see `states.read_states`."""

    @abstractmethod
    def write_states(self, *states: Tensor) -> None:
        """Keep the states [S, *shape] of all sequences after the tokens of the pass."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
        """Append the keys and values of all tokens of the pass, and attend; shapes as in `attend_rotated`."""
        self.append(k, v)
        n = self.n_started
        if n == 0:
            return self.attend_cached(q, spec)
        started = self.attend_started(q[:n], k[:n], v[:n], spec)
        return started if n == len(q) else torch.cat((started, self.attend_cached(q[n:], spec)))


LayerCache = tuple[Tensor, ...] | BlockCache
"""The tensors of one layer's `CacheSpec`, of which keys and values of grouped-query attention are [S, K, C, D] each; or
what stands for them in `attend` of `model.attention.functional`."""


class ForwardCache(Protocol):
    """What the blocks of a network keep of the sequences of a forward pass."""

    @property
    def blocks(self) -> Mapping[int, LayerCache]:
        """Number of a block, from 1 -> what it keeps."""

    def advance(self, lengths: Sequence[int]) -> None:
        """Count the tokens that a forward pass has written, after its last block."""


def keys_and_values(config: ReaLModelConfig) -> CacheSpec:
    """Keys and values of each KV head, the default for a layer that declares no `cache_spec`."""
    keys, values = (CacheTensor((config.n_kv_heads, n), shard=Shard(0)) for n in (config.head_dim, config.value_dim))
    return keys, values


class KVCache:
    """The tensors that the attention layers of some blocks keep for S sequences, and the number of tokens of each.

    If the length of a sequence is 0, a layer starts from scratch, whatever its tensors contain.

    Args:
        specs: number of a block, from 1 -> the tensors that its attention keeps.
        n_sequences: number of sequences S.
        capacity: maximum number of tokens C of a sequence.
        tp: number of ranks among which each layer is split.
        dtype: dtype of tensors that declare none.
        device: device of the tensors.
    """

    def __init__(
        self,
        specs: Mapping[int, CacheSpec],
        n_sequences: int,
        capacity: int,
        *,
        tp: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        device = torch.device(device)
        self.blocks: dict[int, tuple[Tensor, ...]] = {
            number: tuple(each.allocate(n_sequences, capacity, tp, dtype, device) for each in spec)
            for number, spec in specs.items()
        }
        """Number of a block -> its tensors."""
        self.lengths = [0] * n_sequences
        self.capacity = capacity

    def keep(self, sequences: Sequence[int]) -> None:
        """Keep only these sequences, in this order."""
        for number, tensors in self.blocks.items():
            rows = torch.tensor(list(sequences), dtype=torch.int64)
            self.blocks[number] = tuple(tensor[rows.to(tensor.device)] for tensor in tensors)
        self.lengths = [self.lengths[row] for row in sequences]

    def advance(self, lengths: Sequence[int]) -> None:
        """Count the tokens that a forward pass has written."""
        self.lengths = [old + new for old, new in zip(self.lengths, lengths, strict=True)]


def store(
    cache: tuple[Tensor, ...], new: Sequence[Tensor], cached_lengths: Sequence[int], lengths: Sequence[int]
) -> None:
    """Write packed tensors [T, K, D], such as keys and values, behind the `cached_lengths` tokens of each sequence.

    `cache` may have further tensors, which stay as they are.
    """
    held_tensors = cache[: len(new)]
    if all(length == 1 for length in lengths):
        rows = torch.arange(len(lengths), device=new[0].device)
        columns = torch.tensor(list(cached_lengths), device=new[0].device)
        for held, packed in zip(held_tensors, new, strict=True):
            held[rows, :, columns] = packed
        return
    for held, packed in zip(held_tensors, new, strict=True):
        for row, (start, part) in enumerate(zip(cached_lengths, packed.split(list(lengths)), strict=True)):
            held[row, :, start : start + len(part)] = part.transpose(0, 1)
