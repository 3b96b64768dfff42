"""The distribution of the next token of each sequence: its most likely token, log-probabilities, and draws.

Shapes: N sequences, V vocabulary, B blocks of it.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from reallm.model import softmax


class Distribution:
    """Softmax of logits at a temperature; what is not asked for is not computed.

    Args:
        logits: [N, V].
        inverse_temperature: one for all rows, or [N, 1] float64.
    """

    def __init__(self, logits: Tensor, inverse_temperature: float | Tensor = 1.0) -> None:
        self._logits, self._inverse_temperature = logits, inverse_temperature
        maxima = softmax.block_maxima(logits)
        self._best_block = maxima.argmax(dim=-1, keepdim=True)
        self._highest = maxima.gather(1, self._best_block).to(torch.promote_types(logits.dtype, torch.float32))

    @property
    def most_likely(self) -> Tensor:
        """[N, 1]: the most likely token, among equals the one with the lowest id."""
        ids = softmax.columns_of_block(self._best_block, self._logits.shape[1])
        return ids.gather(1, self._logits.gather(1, ids).argmax(dim=-1, keepdim=True))

    def logprobs(self, tokens: Tensor) -> Tensor:
        """Log-probabilities [N, K] float64 of tokens [N, K]; NaN in rows with NaN or +infinity."""
        return softmax.logprob(
            self._logits.gather(1, tokens).to(self._highest.dtype),
            self._highest,
            self._total,
            self._inverse_temperature,
        )

    def draw(self, uniform: Tensor) -> Tensor:
        """Tokens [N, 1] by inverse transform sampling in the order of ids, from numbers [N, 1] float64 in [0, 1)."""
        cumulative = self._block_sums.cumsum(dim=-1, dtype=torch.float64)
        target = uniform * cumulative[:, -1:]
        block = _first_above(cumulative, target)
        # looked for within the block; rounding leads neither out of it nor to a token without probability
        ids = softmax.columns_of_block(block, self._logits.shape[1])
        within = target - (cumulative - self._block_sums).gather(1, block)
        return ids.gather(1, _first_above(self._weights.gather(1, ids).cumsum(dim=-1, dtype=torch.float64), within))

    def mass_in(self, whole: Distribution) -> Tensor:
        """Probability [N, 1] float64 that another distribution gives to the tokens of this one, which is a part of it.

        This one has the other's logits, or -infinity, and its temperature.
        """
        return (
            softmax.logprob(self._highest, whole._highest, whole._total, self._inverse_temperature).exp() * self._total
        )

    @cached_property
    def _weights(self) -> Tensor:
        return softmax.exponentials(self._logits, self._highest, self._inverse_temperature)

    @cached_property
    def _block_sums(self) -> Tensor:
        return softmax.block_sums(self._weights)

    @cached_property
    def _total(self) -> Tensor:
        return softmax.total(self._block_sums)


def _first_above(cumulative: Tensor, value: Tensor) -> Tensor:
    """Index [N, 1] of the first entry of cumulative sums [N, M] that is above a value [N, 1].

    A value that is negative or not below the last sum is taken to be the nearest one that is in between, so that the
    entry adds to the sum. Any index if the sums are NaN.
    """
    last = cumulative[:, -1:]
    value = value.clamp(min=0).minimum(last.nextafter(torch.zeros_like(last)))
    return torch.searchsorted(cumulative, value, right=True).clamp_(max=cumulative.shape[1] - 1)
