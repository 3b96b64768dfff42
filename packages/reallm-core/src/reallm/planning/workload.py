"""`Workload`: the numbers and lengths of sequences that a step is planned for. Imports no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from reallm.arguments import NamedFields

N_QUANTILES = 64
"""Lengths that stand for a distribution."""


@dataclass(frozen=True)
class Lengths:
    """A distribution of lengths, as values that are equally frequent, in ascending order."""

    values: tuple[int, ...]

    @classmethod
    def constant(cls, length: int) -> Lengths:
        """All of one length."""
        return cls((length,))

    @classmethod
    def of(cls, lengths: Iterable[int]) -> Lengths:
        """The distribution of measured lengths."""
        ordered = sorted(lengths)
        n = min(N_QUANTILES, len(ordered))
        return cls(tuple(ordered[int((index + 0.5) * len(ordered) / n)] for index in range(n)))

    @classmethod
    def lognormal(cls, median: float, sigma: float, longest: int) -> Lengths:
        """Lengths whose logarithm is normally distributed, cut at the longest; at least 1."""
        normal = statistics.NormalDist()
        quantiles = [normal.inv_cdf((index + 0.5) / N_QUANTILES) for index in range(N_QUANTILES)]
        return cls(tuple(max(1, min(longest, round(median * math.exp(sigma * z)))) for z in quantiles))

    @cached_property
    def mean(self) -> float:
        """The mean length."""
        return sum(self.values) / len(self.values)

    @property
    def longest(self) -> int:
        """The greatest length."""
        return self.values[-1]


@dataclass(frozen=True)
class Workload(NamedFields):
    """What one step computes: prompts, answers to each, and optimizer steps on them.

    An algorithm that generates nothing has rows of `prompts` alone.
    """

    n_prompts: int
    prompts: Lengths
    """Lengths of prompts in tokens."""
    n_answers: int = 1
    """Answers to each prompt."""
    answers: Lengths = Lengths((0,))
    """Lengths of answers in tokens."""
    n_minibatches: int = 1
    """Optimizer steps in one pass over the sequences of a step."""
    n_epochs: int = 1
    """Passes over the sequences of a step."""

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps in a step."""
        return self.n_minibatches * self.n_epochs

    @property
    def n_sequences(self) -> int:
        """Number of sequences."""
        return self.n_prompts * self.n_answers

    @property
    def n_tokens(self) -> float:
        """Tokens of all sequences, prompts included."""
        return self.n_sequences * (self.prompts.mean + self.answers.mean)
