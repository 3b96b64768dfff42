"""Softmax over the vocabulary with sums that do not depend on the rest of the batch; sampling and training share it.

The sum of a whole row is split among threads if it is the only row, and not if there are many, which changes its last
bits. Sums over blocks of columns are many in either case.

Shapes: N rows, V vocabulary, B blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reallm.errors import ConfigError

LOG2_E = math.log2(math.e)
BLOCK_SIZE = 256
"""Number of columns in a block; the last one may have fewer."""


def check_temperature(temperature: Any) -> float:
    """A temperature at which there are log-probabilities.

    Raises:
        ConfigError: it is not a number more than 0.
    """
    if not isinstance(temperature, int | float) or not 0 < temperature < math.inf:
        raise ConfigError(
            f"temperature={temperature!r} must be a number more than 0; greedy completions have the log-probabilities "
            "of temperature 1"
        )
    return float(temperature)


def inverse_of(temperature: float) -> float:
    """Factor of the logits, which is finite in float32 too; errors as in `check_temperature`."""
    return 1 / max(check_temperature(temperature), 1e-30)


def exponentials(
    logits: Tensor, highest: Tensor, inverse_temperature: float | Tensor, *, out: Tensor | None = None
) -> Tensor:
    """`exp((logits - highest) * inverse_temperature)` [N, V].

    Args:
        logits: [N, V].
        highest: [N, 1] at least float32, the highest logit of each row, so that no result is above 1.
        inverse_temperature: one for all rows, or [N, 1] float64.
        out: where to write, with the dtype of `highest`; may be `logits`.
    """
    # torch's exp2 takes a third of the time of its exp on a CPU
    factor = inverse_temperature * LOG2_E
    shifted = torch.sub(logits, highest, out=out)
    return shifted.mul_(factor.to(shifted.dtype) if isinstance(factor, Tensor) else factor).exp2_()


def block_sums(x: Tensor) -> Tensor:
    """Sums [N, B] over blocks of the columns of [N, V]."""
    return _reduce_blocks(x, torch.sum)


def block_maxima(x: Tensor) -> Tensor:
    """Maxima [N, B] over blocks of the columns of [N, V]."""
    return _reduce_blocks(x, torch.amax)


def columns_of_block(block: Tensor, n_columns: int) -> Tensor:
    """Columns [N, BLOCK_SIZE] of the blocks [N, 1] of a matrix; the last column stands in for those that it lacks."""
    columns = block * BLOCK_SIZE + torch.arange(BLOCK_SIZE, device=block.device)
    return columns.clamp_(max=n_columns - 1)


def total(sums: Tensor) -> Tensor:
    """Sums of rows [N, 1] float64, from the sums of their blocks [N, B]."""
    return sums.sum(dim=-1, keepdim=True, dtype=torch.float64)


def logprob(logit: Tensor, highest: Tensor, total: Tensor, inverse_temperature: float | Tensor) -> Tensor:
    """Log-probability [N, K] float64 of tokens with these logits.

    Args:
        logit: [N, K] with the dtype of `highest`.
        highest: [N, 1], as given to `exponentials`.
        total: [N, 1] float64, sums of the exponentials.
        inverse_temperature: as given to `exponentials`.
    """
    if isinstance(inverse_temperature, Tensor):
        inverse_temperature = inverse_temperature.to(highest.dtype)
    return ((logit - highest) * inverse_temperature).double() - total.log()


def _reduce_blocks(x: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    n_whole = x.shape[1] // BLOCK_SIZE * BLOCK_SIZE
    parts = []
    if n_whole:
        parts.append(reduce(x[:, :n_whole].unflatten(1, (-1, BLOCK_SIZE)), dim=-1))
    if n_whole < x.shape[1]:
        parts.append(reduce(x[:, n_whole:], dim=-1, keepdim=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
