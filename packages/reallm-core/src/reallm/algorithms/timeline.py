"""What the ranks of a job did, and when: `Span`, measured or simulated, and `Timeline`, which records them on a rank.

Imports no torch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

KEPT_SPANS = 4096
"""Spans that a rank remembers; a step of PPO has about 20."""

END_OF_STEP = "the end of the step"
"""The name of what a rank waits for once its calls are done: the others."""

SpanKind = Literal["call", "move", "reload", "offload", "data", "wait"]
"""What a rank does: a model function call; a move of weights between two copies of a model; loading a copy from host
memory ahead of its call, or moving it there, both in the background; receiving outputs of another call; waiting for
them."""


@dataclass(frozen=True)
class Span:
    """Something that one rank did from one moment to another."""

    rank: int
    kind: SpanKind
    name: str
    """A call; or, of a move, `actor to dp4@0-3`, and of data and what is waited for, `actor_gen to ref_inf`."""
    start: float
    """Seconds, on a clock that all ranks share."""
    end: float
    bytes: int = 0
    """Bytes that this rank received, or moved to or from host memory: of arrays, without what describes them."""


@dataclass
class OpenSpan:
    """A span that has not ended."""

    bytes: int = 0


class Timeline:
    """Records what this rank does: the newest `KEPT_SPANS` spans.

    Args:
        rank: this rank.
        zero: time 0 of the clock that all ranks share, on this rank's `time.perf_counter`.
    """

    def __init__(self, rank: int = 0, zero: float = 0.0) -> None:
        self._rank, self._zero = rank, zero
        self._spans: deque[Span] = deque(maxlen=KEPT_SPANS)

    @contextmanager
    def span(self, kind: SpanKind, name: str) -> Iterator[OpenSpan]:
        """Context whose time is recorded, unless it raises; yields what its bytes are noted in."""
        start, span = time.perf_counter(), OpenSpan()
        yield span
        self.add(kind, name, start, time.perf_counter(), span.bytes)

    def add(self, kind: SpanKind, name: str, start: float, end: float, n_bytes: int = 0) -> None:
        """Record a span; times are those of `time.perf_counter`."""
        self._spans.append(Span(self._rank, kind, name, start - self._zero, end - self._zero, n_bytes))

    def since(self, moment: float) -> list[Span]:
        """The spans that ended after a moment of `time.perf_counter`, by their start."""
        return in_order(span for span in self._spans if span.end > moment - self._zero)


def in_order(spans: Iterable[Span]) -> list[Span]:
    """Spans by their start, then by rank."""
    return sorted(spans, key=lambda span: (span.start, span.rank, span.end))
