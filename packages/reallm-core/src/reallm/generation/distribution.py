"""The distribution of the next token of each sequence: the most likely token, log-probabilities, and draws.

Shapes: N sequences, V vocabulary, K tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        self.logits, self.inverse_temperature = logits, inverse_temperature

    def rows(self, rows: Sequence[int]) -> Distribution:
        """The distributions of some of the sequences."""
        inverse = self.inverse_temperature
        return Distribution(self.logits[rows], inverse[rows] if isinstance(inverse, Tensor) else inverse)

    @property
    def most_likely(self) -> Tensor:
        """[N, 1]: the most likely token, among equals the one with the lowest id."""
        return self._highest.columns

    @property
    def normalizer(self) -> Tensor:
        """[N, 1] float64; see `Softmax`."""
        return self._softmax.normalizer

    def logprobs(self, tokens: Tensor) -> Tensor:
        """Log-probabilities [N, K] float64 of tokens [N, K]; NaN in rows with NaN or +infinity."""
        return softmax.logprob(self.logits.gather(1, tokens), self.normalizer, self.inverse_temperature)

    def draw(self, uniform: Tensor) -> Tensor:
        """Tokens [N, 1] by inverse transform sampling in the order of ids, from numbers [N, 1] float64 in [0, 1)."""
        weights, cumulative, _ = self._softmax
        target = uniform * cumulative[:, -1:]
        block = _first_above(cumulative, target)
        before = cumulative.gather(1, (block - 1).clamp_(min=0)).masked_fill_(block == 0, 0.0)
        ids = softmax.columns_of_block(block, self.logits.shape[1])
        within = weights.gather(1, ids).cumsum(dim=-1, dtype=torch.float64)
        return ids.gather(1, _first_above(within, target - before))

    @cached_property
    def _highest(self) -> softmax.Highest:
        return softmax.highest(self.logits)

    @cached_property
    def _softmax(self) -> softmax.Softmax:
        return softmax.softmax(self.logits, self._highest, self.inverse_temperature)


def _first_above(cumulative: Tensor, value: Tensor) -> Tensor:
    """Index [N, 1] of the first of the cumulative sums [N, K] that is above a value [N, 1].

    Rounding may bring a value below 0 or to the last sum; it is moved into the range between, so that the entry at the
    index is one that adds to the sums. Any index if they are NaN.
    """
    last = cumulative[:, -1:]
    value = value.clamp(min=0).minimum(last.nextafter(torch.zeros_like(last)))
    return torch.searchsorted(cumulative, value, right=True).clamp_(max=cumulative.shape[1] - 1)
