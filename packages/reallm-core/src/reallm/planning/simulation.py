"""`Simulation`: what ranks do in a step under an execution plan, and what determines its time. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reallm.algorithms.timeline import END_OF_STEP, Span, SpanKind
from reallm.planning.memory_levels import RankMemory
from reallm.planning.rank_sets import Segments, ranks_in
from reallm.planning.timing import Act, Event

BACKGROUND = ("reload", "offload")
"""What goes on beside what follows it."""


@dataclass(frozen=True)
class Simulation:
    """What ranks do in a step, once the first steps are over."""

    seconds: float
    """Time of the step."""
    spans: tuple[Span, ...]
    """What each rank does, rank by rank, in order of time. Offloads go on beside what follows them."""
    critical_path: tuple[Span, ...]
    """The calls, moves and copies that follow each other without a gap until the end of the step: it is as long as they
    are. It begins with the step, or when the last offload of the step before has ended. Of each, one of its ranks is
    named."""
    idle: Mapping[int, float]
    """Share of the step in which each rank waits."""
    memory: Mapping[int, RankMemory]
    """The memory of each rank."""

    @classmethod
    def of(
        cls,
        n_ranks: int,
        segments: Segments,
        acts: Sequence[Act],
        events: Sequence[Event],
        memory: Sequence[RankMemory],
    ) -> Simulation:
        """The simulation that some events mean, which segments of ranks had."""
        seconds = max((event.end for event in _foreground(acts, events)), default=0.0)
        spans: list[Span] = []
        idle: dict[int, float] = {}
        levels: dict[int, RankMemory] = {}
        of_segment = [_with_waits(acts, events, number, seconds) for number in range(len(segments.parts))]
        number_of = {rank: number for number, part in enumerate(segments.parts) for rank in ranks_in(part)}
        for rank in range(n_ranks):
            number = number_of.get(rank)
            if number is None:
                spans.append(Span(rank, "wait", END_OF_STEP, 0.0, seconds))
                idle[rank], levels[rank] = 1.0, RankMemory()
                continue
            own = [Span(rank, *values) for values in of_segment[number]]
            waiting = sum(span.end - span.start for span in own if span.kind == "wait")
            spans += own
            idle[rank] = waiting / seconds if seconds else 0.0
            levels[rank] = memory[number]
        return cls(seconds, tuple(spans), tuple(_critical_path(segments, acts, events)), idle, levels)

    @property
    def calls(self) -> dict[str, tuple[float, float]]:
        """Start and end of each call, in order of time."""
        return {span.name: (span.start, span.end) for span in sorted(self.spans, key=_start) if span.kind == "call"}


def _start(span: Span) -> float:
    return span.start


_Values = tuple[SpanKind, str, float, float, int]


def _foreground(acts: Sequence[Act], events: Sequence[Event]) -> list[Event]:
    return [event for event in events if acts[event.act].kind not in BACKGROUND]


def _with_waits(acts: Sequence[Act], events: Sequence[Event], segment: int, seconds: float) -> list[_Values]:
    """Kind, name, start, end and bytes of what a segment does, with the gaps between."""
    found: list[_Values] = []
    free = 0.0
    for event in events:
        if event.segment != segment:
            continue
        act = acts[event.act]
        if act.kind not in BACKGROUND:
            if event.start > free:
                found.append(("wait", act.name, free, event.start, 0))
            free = event.end
        if event.end > event.start or act.kind == "call":
            found.append((act.kind, act.name, event.start, event.end, act.n_bytes))
    if seconds > free:
        found.append(("wait", END_OF_STEP, free, seconds, 0))
    return found


def _critical_path(segments: Segments, acts: Sequence[Act], events: Sequence[Event]) -> list[Span]:
    """The chain of events that ends last."""
    found: list[Span] = []
    foreground = set(_foreground(acts, events))
    last = max((n for n, event in enumerate(events) if event in foreground), key=lambda n: events[n].end, default=-1)
    while last >= 0:
        event = events[last]
        act = acts[event.act]
        rank = next(ranks_in(segments.parts[event.segment]))
        if event.end > event.start:
            found.append(Span(rank, act.kind, act.name, event.start, event.end, act.n_bytes))
        last = event.cause
    return found[::-1]
