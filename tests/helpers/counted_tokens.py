"""Counts the tokens that a network computes."""

from __future__ import annotations

from reallm.model.transformer import Transformer


class CountedTokens:
    """Number of tokens of each forward pass of a network from now on."""

    def __init__(self, network: Transformer) -> None:
        self.of_passes: list[int] = []
        inner = network.forward_hidden

        def forward_hidden(tokens, seqs, cache=None):
            self.of_passes.append(len(tokens))
            return inner(tokens, seqs, cache)

        network.forward_hidden = forward_hidden  # type: ignore[method-assign]

    def take(self) -> int:
        """Number of tokens since the last call."""
        total = sum(self.of_passes)
        self.of_passes.clear()
        return total
