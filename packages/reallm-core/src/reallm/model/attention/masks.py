"""Masks of attention scores: what is added to the score of each query and key.

It is -infinity where a query does not see a key, else 0, or, with ALiBi's slopes, `-slope * distance` (Press et al.,
2022, "Train Short, Test Long").

Shapes: H query heads, N sequences, L queries, L' keys.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from reallm.model.attention.functional import AttentionSpec

CHUNK = 256
"""Number of queries that share a mask; larger chunks waste scores and masks, smaller ones calls."""

Slopes = tuple[float, ...]
"""A slope for each query head."""


def alibi_slopes(n_heads: int, scale: float = 1.0) -> Slopes:
    """The slopes of ALiBi, as its authors' code has them: a geometric sequence for powers of 2, `2^(-8 i / H)`.

    For other numbers those of the next lower power of 2, and behind them every other one of twice that power.
    """
    power = 2 ** int(math.log2(n_heads))
    slopes = [2.0 ** (-8 * i / power) for i in range(1, power + 1)]
    slopes += [2.0 ** (-4 * i / power) for i in range(1, 2 * (n_heads - power), 2)]
    return tuple(scale * slope for slope in slopes)


def causal_mask(
    n_queries: int,
    n_keys: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
    slopes: Slopes | None = None,
) -> Tensor:
    """Mask [L, L'], or [H, L, L'] with slopes, of queries that are the last tokens among keys.

    It depends on distances alone: the mask for fewer queries and keys is its last rows and columns.

    Args:
        n_queries: number of queries L.
        n_keys: number of keys L', those of the queries at the end.
        window: number of tokens that each token sees, itself included; None: itself and all before it.
        dtype: dtype of the scores.
        device: device of the scores.
        slopes: slope of each head.
    """
    positions = torch.arange(n_keys, device=device)
    distances = positions[n_keys - n_queries :, None] - positions
    return _mask_of_distances(distances, window, dtype, slopes)


def rows_mask(
    totals: Sequence[int],
    left: int,
    right: int,
    window: int | None,
    dtype: torch.dtype,
    device: torch.device,
    slopes: Slopes | None = None,
) -> Tensor:
    """Mask [N, L'], or [H, N, L'] with slopes, of one query a sequence for the keys at positions `left` to `right`.

    Args:
        totals: number of tokens of each sequence, that of the query included.
        left: position of the first key.
        right: position after the last key.
        window: as in `causal_mask`.
        dtype: dtype of the scores.
        device: device of the scores.
        slopes: as in `causal_mask`.
    """
    distances = torch.tensor(totals, device=device)[:, None] - torch.arange(left + 1, right + 1, device=device)
    return _mask_of_distances(distances, window, dtype, slopes)


def _mask_of_distances(distances: Tensor, window: int | None, dtype: torch.dtype, slopes: Slopes | None) -> Tensor:
    """Mask [..., L, L'] of queries that are at distances [L, L'] behind keys."""
    seen = distances >= 0 if window is None else (distances >= 0) & (distances < window)
    if slopes is None:
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    else:
        wide = torch.promote_types(dtype, torch.float32)
        each = torch.tensor(slopes, dtype=wide, device=seen.device)
        mask = (-each[:, None, None] * distances).to(dtype)
    return mask.masked_fill_(~seen, float("-inf"))


class CausalMasks:
    """The masks that all blocks of a forward pass share, each made once.

    Args:
        longest: number of tokens of the longest sequence, the cached ones included.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._masks: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, n_queries: int, n_keys: int, spec: AttentionSpec, like: Tensor) -> Tensor:
        """`causal_mask` with the window and the slopes of a block.

        Args:
            n_queries: number of queries, with slopes at most `CHUNK`.
            n_keys: number of keys.
            spec: settings of the block.
            like: tensor of the dtype and on the device of the scores.
        """
        if spec.slopes is None:
            return self._mask(n_queries, n_keys, spec, like)
        # one for all chunks, since there is one for each head
        longest = self._longest if spec.window is None else min(self._longest, CHUNK + spec.window - 1)
        return self._mask(min(CHUNK, longest), longest, spec, like)[:, -n_queries:, -n_keys:]

    def _mask(self, n_queries: int, n_keys: int, spec: AttentionSpec, like: Tensor) -> Tensor:
        settings = n_queries, n_keys, spec.window, like.dtype, like.device, spec.slopes
        if settings not in self._masks:
            self._masks[settings] = causal_mask(*settings)
        return self._masks[settings]
