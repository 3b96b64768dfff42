"""Counter-based random numbers: a pure function of who asks, without state.

A sequential generator gives a request other numbers when the order of calls changes. Here the number for a token
follows from the seed, the request, the sample and the position alone.

Source: Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_N_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)


class StreamPosition(NamedTuple):
    """Position in a stream of random numbers; different ones have independent numbers."""

    seed: int
    """Its lowest 64 bits count."""
    key: int
    """64 bits, from `hash_key`."""
    sample: int
    """Index of a sample of the request, less than 2^32."""
    position: int
    """Index of a new token of the sample, less than 2^32."""


def hash_key(key: int | str) -> int:
    """A hash of 64 bits, the same on every machine and in every process; 7 and "7" have different ones."""
    text = f"{'int' if isinstance(key, int) else 'str'}:{key}"
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "little")


def uniform(streams: Sequence[StreamPosition]) -> Tensor:
    """A random number [N] in [0, 1) for each position of a stream: float64 with 53 random bits, on the CPU."""
    words = [
        (position, sample, key & _WORD, key >> 32, seed & _WORD, seed >> 32 & _WORD)
        for seed, key, sample, position in streams
    ]
    numbers = torch.tensor(words, dtype=torch.int64).reshape(-1, 6)
    high, low = philox4x32(numbers[:, :4], numbers[:, 4:])[:, :2].unbind(1)
    return ((high >> 5) * 2**26 + (low >> 6)).double() * 2.0**-53


def philox4x32(counters: Tensor, keys: Tensor) -> Tensor:
    """Philox4x32-10: four random words for each counter.

    Args:
        counters: [N, 4] int64, words of 32 bits.
        keys: [N, 2] int64, words of 32 bits.

    Returns:
        [N, 4] int64, words of 32 bits.
    """
    even, odd = counters.t()[0::2], counters.t()[1::2]  # [2, N] each
    multipliers = torch.tensor(_MULTIPLIERS[::-1], device=counters.device)[:, None]
    increments = torch.tensor(_KEY_INCREMENTS, device=counters.device)[:, None]
    rounds = torch.arange(_N_ROUNDS, device=counters.device)[:, None, None]
    for round_keys in (keys.t() + rounds * increments) & _WORD:
        # int64 wraps around: the 64 bits of the product are those of an unsigned one
        product = even.flip(0) * multipliers
        even, odd = (product >> 32 & _WORD) ^ odd ^ round_keys, product & _WORD
    return torch.stack((even, odd), dim=1).reshape(4, -1).t()
