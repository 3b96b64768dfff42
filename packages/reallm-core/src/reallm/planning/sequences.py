"""The sequences of a call that one data-parallel rank computes: its micro-batches, and the steps of its generation.

All results are those of the busiest rank, for sequences whose lengths are spread evenly over the distribution that the
workload states.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from reallm.data.packing import inference_micro_batches, parallel_micro_batches
from reallm.planning.workload import Lengths, Workload

MOST_PACKED = 256
"""Sequences that are packed for a plan; what is packed for more of them is extrapolated."""
GOLDEN = (math.sqrt(5) - 1) / 2
SAME_WIDTH = 1.1
"""Steps of generation whose numbers of sequences differ by less, as a factor, are taken as equal."""


class Steps(NamedTuple):
    """Steps of generation that are alike."""

    n_steps: float
    n_sequences: float
    """Sequences that each of them computes a token of."""
    context: float
    """Mean number of tokens before the new one."""


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of a rank."""

    lengths: tuple[tuple[int, ...], ...]
    """The lengths of the sequences in some of them, which stand for all."""
    n: float
    """Number of all."""

    @cached_property
    def longest(self) -> tuple[int, ...]:
        """The micro-batch of the most tokens."""
        return max(self.lengths, key=sum)

    @cached_property
    def alike(self) -> Mapping[tuple[int, ...], int]:
        """The lengths of the sequences in each of those that differ, and how many have the same."""
        return Counter(self.lengths)

    @cached_property
    def n_tokens(self) -> float:
        """Tokens of the rank."""
        return self.weight * sum(map(sum, self.lengths))

    @property
    def weight(self) -> float:
        """Micro-batches for each of those that are listed."""
        return self.n / len(self.lengths)


class Sequences:
    """What ranks compute of a workload.

    Args:
        workload: numbers and lengths of sequences.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        prompts, answers = workload.prompts.values, workload.answers.values
        self._lengths = Lengths.of(prompt + answer for prompt in prompts for answer in answers)
        self.share_of_answers = workload.answers.mean / max(1.0, workload.prompts.mean + workload.answers.mean)
        self.training = lru_cache(maxsize=None)(self._training)
        self.inference = lru_cache(maxsize=None)(self._inference)
        self.generation = lru_cache(maxsize=None)(self._generation)

    @property
    def longest(self) -> int:
        """The longest sequence, in tokens."""
        return self.workload.prompts.longest + self.workload.answers.longest

    def _training(self, dp: int, pp: int, max_tokens: int) -> MicroBatches:
        """The micro-batches of a rank for one optimizer step, as training packs them."""
        n = math.ceil(self.workload.n_sequences / self.workload.n_minibatches)
        n_packed, dp_packed = _fewer(n, dp)
        packed = _spread(self._lengths, n_packed)
        ranks = parallel_micro_batches(packed, max_tokens, dp_packed, at_least=pp)
        return _busiest(packed, ranks, n / dp / (n_packed / dp_packed))

    def _inference(self, dp: int, pp: int, max_tokens: int) -> MicroBatches:
        """The micro-batches of a rank for one forward pass over all sequences, as inference packs them."""
        n = self.workload.n_sequences
        n_packed, dp_packed = _fewer(n, dp)
        packed = _spread(self._lengths, n_packed)
        ranks = inference_micro_batches(packed, dp_packed, pp, max_tokens)
        return _busiest(packed, ranks, n / dp / (n_packed / dp_packed))

    def _generation(self, dp: int, max_sequences: int) -> tuple[Steps, ...]:
        """The steps of a rank that samples its answers, at most so many at the same time.

        Each answer takes as many steps as it has tokens. When one ends, the next one that waits begins.
        """
        workload = self.workload
        n = math.ceil(workload.n_sequences / dp)
        answers = _spread(workload.answers, n)
        answers[answers.index(max(answers))] = workload.answers.longest  # some rank has it, and the call ends with it
        return tuple(_merged(_decoded(answers, max_sequences), workload.prompts.mean))

    def prompts(self, dp: int) -> int:
        """Prompts that a rank computes; each once, however many answers it gets."""
        return math.ceil(self.workload.n_prompts / dp)


def _fewer(n: int, dp: int) -> tuple[int, int]:
    """Sequences and ranks to pack in place of `n` and `dp`: as many sequences a rank, of fewer ranks if need be."""
    if n <= MOST_PACKED:
        return n, dp
    n_ranks = max(1, MOST_PACKED * dp // n)
    return min(MOST_PACKED, max(1, round(n / dp * n_ranks))), n_ranks


def _spread(lengths: Lengths, n: int) -> list[int]:
    """So many lengths, spread evenly over the distribution, in an order in which long and short ones alternate."""
    values = lengths.values
    ordered = [values[int((index + 0.5) * len(values) / n)] for index in range(n)]
    return [ordered[index] for index in sorted(range(n), key=lambda index: index * GOLDEN % 1)]


def _busiest(lengths: Sequence[int], ranks: Sequence[Sequence[Sequence[int]]], scale: float) -> MicroBatches:
    """The micro-batches of the rank with the most tokens."""
    of_rank = max(ranks, key=lambda parts: sum(lengths[index] for part in parts for index in part))
    filled = tuple(tuple(lengths[index] for index in part) for part in of_rank if part)
    return MicroBatches(filled or ((1,),), max(1.0, len(of_rank) * scale))


def _decoded(answers: Sequence[int], max_sequences: int) -> Iterator[tuple[int, int, int]]:
    """Periods between ends of answers: number of steps, sequences that run, and their generated tokens at its start."""
    waiting = iter(answers)
    ends: list[tuple[int, int]] = []  # (step at whose end the answer is complete, its length)
    step = sum_of_starts = 0

    def begin() -> bool:
        nonlocal sum_of_starts
        length = next(waiting, None)
        if length is None:
            return False
        heapq.heappush(ends, (step + length, length))
        sum_of_starts += step
        return True

    while len(ends) < max_sequences and begin():
        pass
    while ends:
        end = ends[0][0]
        if end > step:
            yield end - step, len(ends), len(ends) * step - sum_of_starts
        step = end
        while ends and ends[0][0] == step:
            _, length = heapq.heappop(ends)
            sum_of_starts -= step - length
            begin()


def _merged(periods: Iterator[tuple[int, int, int]], prompt: float) -> Iterator[Steps]:
    """Periods of about as many sequences as one."""
    n_steps = n_tokens = n_contexts = widest = 0.0
    for steps, width, generated in periods:
        if n_steps and not (widest / SAME_WIDTH <= width <= widest * SAME_WIDTH):
            yield Steps(n_steps, n_tokens / n_steps, prompt + n_contexts / n_tokens)
            n_steps = n_tokens = n_contexts = 0.0
        if not n_steps:
            widest = width
        n_steps += steps
        n_tokens += steps * width
        n_contexts += steps * (generated + width * (steps - 1) / 2)
    if n_steps:
        yield Steps(n_steps, n_tokens / n_steps, prompt + n_contexts / n_tokens)
