"""`PackedSequences`: bounds and positions of the sequences in a packed batch.

Two sequences of 3 and 2 tokens: `tokens = [a0 a1 a2 b0 b1]`, `cu_seqlens = [0 3 5]`, `positions = [0 1 2 0 1]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from reallm.errors import DataError
from reallm.model.inputs import as_cu_seqlens


@dataclass(frozen=True)
class PackedSequences:
    """Lengths of S packed sequences, and the number of tokens of each that a KV cache already holds."""

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    """[S+1] int32: sequence `i` owns the tokens `cu_seqlens[i]:cu_seqlens[i+1]`."""
    cached_lengths: tuple[int, ...]
    """Number of earlier tokens of each sequence that are in the cache; zeros without a cache."""

    @classmethod
    def from_lengths(
        cls, lengths: Sequence[int], *, cached_lengths: Sequence[int] | None = None, device: torch.device | str = "cpu"
    ) -> PackedSequences:
        """Sequences of the given lengths, one after another."""
        bounds = torch.tensor([0, *lengths]).cumsum(0).to(device=device, dtype=torch.int32)
        return cls(tuple(lengths), bounds, tuple(cached_lengths) if cached_lengths is not None else (0,) * len(lengths))

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Tensor, tokens: Tensor) -> PackedSequences:
        """Sequences of `tokens` [T] with bounds `cu_seqlens` [S+1] integers, on the device of the tokens.

        Bounds on the CPU are faster: from a GPU they must be copied.

        Raises:
            DataError: the bounds do not start at 0, decrease, or do not end at the number of tokens.
        """
        cu_seqlens = as_cu_seqlens(cu_seqlens)
        if not cu_seqlens.numel():
            raise DataError("cu_seqlens is empty; it must be integers [S+1], from 0 to the number of tokens")
        n_tokens, bounds = tokens.numel(), cu_seqlens.tolist()
        lengths = tuple(end - start for start, end in pairwise(bounds))
        if bounds[0] != 0 or bounds[-1] != n_tokens or min(lengths, default=0) < 0:
            raise DataError(
                f"cu_seqlens must rise from 0 to the number of tokens, {n_tokens}; "
                f"it goes from {bounds[0]} to {bounds[-1]}"
                + (" and decreases in between" if min(lengths, default=0) < 0 else "")
            )
        return cls(lengths, cu_seqlens.to(tokens.device, torch.int32), (0,) * len(lengths))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Index in the pack of the first token of each sequence."""
        return (0, *accumulate(self.lengths))[: len(self.lengths)]

    @property
    def n_tokens(self) -> int:
        """T, the number of packed tokens."""
        return sum(self.lengths)

    @property
    def max_length(self) -> int:
        """Number of tokens of the longest sequence, not counting cached ones."""
        return max(self.lengths, default=0)

    @cached_property
    def totals(self) -> tuple[int, ...]:
        """Length of each sequence, including its tokens in the cache."""
        return tuple(cached + length for cached, length in zip(self.cached_lengths, self.lengths, strict=True))

    @cached_property
    def positions(self) -> Tensor:
        """Position [T] int64 of each token in its sequence."""
        device = self.cu_seqlens.device
        repeats = torch.tensor(self.lengths, dtype=torch.int64, device=device)
        # positions = index in the pack - start of the sequence + tokens before it
        shift = torch.tensor(self.cached_lengths, dtype=torch.int64, device=device) - self.cu_seqlens[:-1]
        return torch.arange(self.n_tokens, device=device) + torch.repeat_interleave(shift, repeats)
