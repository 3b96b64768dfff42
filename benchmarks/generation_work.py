"""The work of the generation benchmark: prompts, and how many tokens are generated after each.

Lengths are quantiles of their distribution, as in `workloads.py`; prompts are consecutive pieces of English text.
"""

from __future__ import annotations

import math
import pydoc_data.topics
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist


@dataclass(frozen=True)
class Requests:
    """Prompts that are continued, each by a number of tokens that is the same for all sides, whatever they are."""

    prompts: tuple[tuple[int, ...], ...]
    """Token ids."""
    new_tokens: tuple[int, ...]
    """Number of tokens after each prompt."""
    n: int = 1
    """Samples of each prompt, at temperature 1; a single one is greedy."""

    @property
    def n_generated(self) -> int:
        return self.n * sum(self.new_tokens)

    @property
    def are_equal(self) -> bool:
        """Whether all are continued by the same number of tokens."""
        return len(set(self.new_tokens)) == 1


@dataclass(frozen=True)
class Job:
    """What every side is given: a checkpoint, and requests by the name under which they are asked for."""

    folder: Path
    requests: dict[str, Requests]
    device: str = "cpu"
    dtype: str = "float32"


def lognormal(n: int, median: float, sigma: float, longest: int) -> tuple[int, ...]:
    """Numbers of new tokens: the quantiles `(i + 1/2) / n`, cut at the longest, in random order."""
    shares = [(i + 0.5) / n for i in range(n)]
    lengths = [min(longest, round(median * math.exp(sigma * NormalDist().inv_cdf(share)))) for share in shares]
    random.Random(0).shuffle(lengths)
    return tuple(lengths)


class Text:
    """English text as token ids, of which prompts are cut one after another."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        topics = pydoc_data.topics.topics  # the documentation of Python, as `help()` shows it
        self._ids: Sequence[int] = [token for name in sorted(topics) for token in tokenizer.encode(topics[name])]
        self._next = 0

    def prompts(self, n: int, length: int) -> tuple[tuple[int, ...], ...]:
        starts = range(self._next, self._next + n * length, length)
        self._next += n * length
        assert self._next <= len(self._ids), "not enough text"
        return tuple(tuple(self._ids[start : start + length]) for start in starts)


class RandomIds:
    """Random token ids, for models that know no language."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size, self._random = vocab_size, random.Random(0)

    def prompts(self, n: int, length: int) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(self._random.randrange(self._vocab_size) for _ in range(length)) for _ in range(n))
