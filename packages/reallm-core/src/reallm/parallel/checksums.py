"""Fingerprints of tensors that do not depend on the order of summation: integers made of the bit patterns."""

from __future__ import annotations

import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_AT_ONCE = 1 << 18
SCRATCH_BYTES = 4 * 8 * _AT_ONCE
"""Memory that a fingerprint takes at the most, beside a copy of what is not contiguous."""


def fingerprint(values: Tensor) -> Tensor:
    """The sum of all bit patterns, and their sum weighted by position, modulo 2**64.

    The first changes with any altered element, the second with two that have changed places.

    Args:
        values: any shape and dtype of up to 8 bytes.

    Returns:
        `[2]`, int64, on the device of the values. The same values give the same numbers on every device.
    """
    flat = values.detach().contiguous().view(-1)
    bits = flat.view(_BITS[flat.element_size()])
    sums = torch.zeros(2, dtype=torch.int64, device=values.device)
    for start in range(0, bits.numel(), _AT_ONCE):
        some = bits[start : start + _AT_ONCE].long()
        sums[0] += some.sum()
        sums[1] += some.mul_(torch.arange(start + 1, start + 1 + some.numel(), device=some.device)).sum()
    return sums
