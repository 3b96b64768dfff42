"""Softmax over the vocabulary, of which no row depends on the others; sampling and training share it.

The sum of a whole row is split among threads if it is the only row, and not if there are many, which changes its last
bits. Sums over blocks of columns are many in either case, and blocks are added as whole numbers, exactly.

Shapes: N rows, V vocabulary, B blocks, K columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reallm.errors import ConfigError

BLOCK_SIZE = 256
"""Number of columns in a block; the last one may have fewer."""


class Highest(NamedTuple):
    """The highest logit of each row."""

    logits: Tensor
    """[N, 1], at least float32."""
    columns: Tensor
    """[N, 1], the lowest among those that have it."""


class Softmax(NamedTuple):
    """Softmax of logits at a temperature."""

    weights: Tensor
    """[N, V], at least float32: the probabilities times a factor near 1."""
    cumulative: Tensor
    """[N, B] int64, `fixed_point` of their sums up to the end of each block."""
    normalizer: Tensor
    """[N, 1] float64, the logarithm of the sum of the exponentials of the logits over the temperature."""

    def factor(self, normalizer: Tensor) -> Tensor:
        """Factor [N, 1] of the weights that makes them the probabilities that belong to a normalizer [N, 1]."""
        return ((self.normalizer - normalizer).exp() / from_fixed_point(self.cumulative[:, -1:])).to(self.weights.dtype)


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


def highest(logits: Tensor) -> Highest:
    """The highest of logits [N, V] of each row."""
    maxima = _reduce_blocks(logits, torch.amax)
    block = maxima.argmax(dim=-1, keepdim=True)
    columns = columns_of_block(block, logits.shape[1])
    place = logits.gather(1, columns).argmax(dim=-1, keepdim=True)
    exact = torch.promote_types(logits.dtype, torch.float32)
    return Highest(maxima.gather(1, block).to(exact), columns.gather(1, place))


def softmax(
    logits: Tensor, best: Highest, inverse_temperature: float | Tensor = 1.0, *, overwrite: bool = False
) -> Softmax:
    """Softmax of logits [N, V] over a temperature; computed in float32, or in float64 if the logits have it.

    Args:
        logits: [N, V].
        best: `highest(logits)`.
        inverse_temperature: one for all rows, or [N, 1] float64.
        overwrite: whether the weights may take the memory of the logits, which have the dtype of `best.logits`.
    """
    dtype = best.logits.dtype
    if isinstance(inverse_temperature, Tensor) or inverse_temperature != 1.0:
        # less the highest, so that a low temperature cannot make it infinite
        logits = torch.sub(logits, best.logits, out=logits if overwrite else None)
        logits.mul_(inverse_temperature.to(dtype) if isinstance(inverse_temperature, Tensor) else inverse_temperature)
        overwrite = True
    in_place = overwrite and logits.device.type == "cpu"  # on other devices torch's softmax may not work in place
    weights = torch.softmax(logits, dim=-1, dtype=dtype, out=logits if in_place else None)
    cumulative = fixed_point(_reduce_blocks(weights, torch.sum)).cumsum(dim=-1)
    # the factor of the weights follows from the one whose exponential is 1
    correction = from_fixed_point(cumulative[:, -1:]).log() - weights.gather(1, best.columns).double().log()
    return Softmax(weights, cumulative, best.logits.double() * inverse_temperature + correction)


def logprob(logit: Tensor, normalizer: Tensor, inverse_temperature: float | Tensor) -> Tensor:
    """Log-probabilities [N, K] float64 of tokens, from their logits [N, K] and `Softmax.normalizer`."""
    return logit.double() * inverse_temperature - normalizer


def entropy(probabilities: Tensor) -> Tensor:
    """Entropies [N] float64, in nats, of probabilities [N, V]; those of part of a vocabulary are its share of them."""
    return _reduce_blocks(torch.special.entr(probabilities), torch.sum).double().sum(dim=1)


def fixed_point(x: Tensor) -> Tensor:
    """Numbers between 0 and 1 as int64 in units of 2^-60, rounded up. Sums of them are exact in any order."""
    return (x.double() * 2.0**60).ceil_().to(torch.int64)


def from_fixed_point(x: Tensor) -> Tensor:
    """The inverse of `fixed_point`, float64."""
    return x.double() * 2.0**-60


def columns_of_block(block: Tensor, n_columns: int) -> Tensor:
    """Columns [N, BLOCK_SIZE] of blocks [N, 1]; the last column stands in for those that there are not."""
    columns = block * BLOCK_SIZE + torch.arange(BLOCK_SIZE, device=block.device)
    return columns.clamp_(max=n_columns - 1)


def _reduce_blocks(x: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """Reduce [N, V] to [N, B]."""
    n_whole = x.shape[1] // BLOCK_SIZE * BLOCK_SIZE
    parts = []
    if n_whole:
        parts.append(reduce(x[:, :n_whole].unflatten(1, (-1, BLOCK_SIZE)), dim=-1))
    if n_whole < x.shape[1]:
        parts.append(reduce(x[:, n_whole:], dim=-1, keepdim=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
