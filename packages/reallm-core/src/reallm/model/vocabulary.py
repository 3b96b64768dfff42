"""Which part of the vocabulary the head has here, and what that means for its logits."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Vocabulary(Protocol):
    """Rows of the head, from `start` on."""

    start: int

    def read(self, hidden: Tensor) -> Tensor:
        """Hidden states [N, E] as they go into the product with these rows."""

    def whole(self, logits: Tensor) -> Tensor:
        """Logits [N, V] of all rows, from those of these."""

    def sum_(self, x: Tensor) -> Tensor:
        """The sum over all parts of the vocabulary, in place."""

    def max_(self, x: Tensor) -> Tensor:
        """The maximum over all parts of the vocabulary, in place."""


class WholeVocabulary:
    """All of it is here."""

    start = 0

    def read(self, hidden: Tensor) -> Tensor:
        """See `Vocabulary`."""
        return hidden

    def whole(self, logits: Tensor) -> Tensor:
        """See `Vocabulary`."""
        return logits

    def sum_(self, x: Tensor) -> Tensor:
        """See `Vocabulary`."""
        return x

    def max_(self, x: Tensor) -> Tensor:
        """See `Vocabulary`."""
        return x
