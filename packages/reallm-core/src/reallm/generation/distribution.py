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

    def logprobs(self, tokens: Tensor) -> Tensor:
        """Log-probabilities [N, K] float64 of tokens [N, K]; NaN in rows with NaN or +infinity."""
        return softmax.logprob(self.logits.gather(1, tokens), self._softmax.normalizer, self.inverse_temperature)

    def draw(self, uniform: Tensor) -> Tensor:
        """Tokens [N, 1] by inverse transform sampling in the order of ids, from numbers [N, 1] float64 in [0, 1)."""
        weights, cumulative, _ = self._softmax
        target = (uniform * cumulative[:, -1:]).to(torch.int64)
        block = _first_above(cumulative, target)
        before = cumulative.gather(1, (block - 1).clamp_(min=0)).masked_fill_(block == 0, 0)
        ids = softmax.columns_of_block(block, self.logits.shape[1])
        within = softmax.fixed_point(weights.gather(1, ids))
        within[:, 1:].masked_fill_(ids[:, 1:] == ids[:, :-1], 0)  # the end of the last block
        return ids.gather(1, _first_above(within.cumsum(dim=-1), target - before))

    @cached_property
    def _highest(self) -> softmax.Highest:
        return softmax.highest(self.logits)

    @cached_property
    def _softmax(self) -> softmax.Softmax:
        return softmax.softmax(self.logits, self._highest, self.inverse_temperature)


def _first_above(cumulative: Tensor, value: Tensor) -> Tensor:
    """Index [N, 1] of the first of the cumulative sums [N, K] int64 that is above a value [N, 1], at least 0.

    That entry adds something to the sums. If rounding has brought the value to the last sum or above, it is the last
    entry that does; any entry if the sums come from NaN.
    """
    value = value.minimum(cumulative[:, -1:] - 1)
    return torch.searchsorted(cumulative, value, right=True).clamp_(max=cumulative.shape[1] - 1)
