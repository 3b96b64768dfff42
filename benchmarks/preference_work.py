"""The work of the benchmark of preference learning: a model, and pairs of given length distributions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from workloads import ANSWER_SHARE, LOGNORMAL


@dataclass(frozen=True)
class Pair:
    """A prompt with a chosen and a rejected answer, as tokens."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def sequences(self) -> tuple[list[int], list[int]]:
        """The prompt with each answer."""
        return self.prompt + self.chosen, self.prompt + self.rejected


@dataclass(frozen=True)
class PreferenceJob:
    """What every side is given; all compute in float32 on a CPU."""

    folder: Path
    """The language model to start from."""
    reward_folder: Path
    """The same with a scalar head."""
    pairs: Sequence[Pair]
    scratch: Path

    @property
    def n_tokens(self) -> int:
        return sum(len(sequence) for pair in self.pairs for sequence in pair.sequences)


def lognormal_pairs(n: int, vocab_size: int) -> list[Pair]:
    """Pairs of random tokens. Lengths of prompts with chosen answers are those of the training benchmark.

    Rejected answers have the lengths of the chosen ones, in another order.
    """
    random = np.random.default_rng(0)
    shares = random.permutation((np.arange(n) + 0.5) / n)
    whole = [
        round(float(np.clip(LOGNORMAL.quantile(share), LOGNORMAL.shortest, LOGNORMAL.longest))) for share in shares
    ]
    answers = [max(1, round(ANSWER_SHARE * length)) for length in whole]
    others = [answers[(i + 1) % n] for i in range(n)]

    def tokens(length: int) -> list[int]:
        drawn: list[int] = random.integers(1, vocab_size, length).tolist()
        return drawn

    return [
        Pair(tokens(length - answer), tokens(answer), tokens(other))
        for length, answer, other in zip(whole, answers, others, strict=True)
    ]
