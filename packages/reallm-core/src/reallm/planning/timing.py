"""When the ranks of a plan do what: the rules of waiting, for what takes known times. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from reallm.algorithms.timeline import SpanKind


class Act(NamedTuple):
    """Something that takes time, on the ranks of some segments."""

    kind: SpanKind
    name: str
    segments: tuple[int, ...]
    seconds: float
    n_bytes: int = 0
    """Bytes that a rank receives, or moves to or from host memory; of a move of weights, the busiest one."""
    call: int = -1
    """Number of the call; of data, of the one that has written them."""
    copies: tuple[int, ...] = ()
    """The copies of models that are used or moved."""


class Event(NamedTuple):
    """What the ranks of a segment did from one moment to another."""

    act: int
    """Number of the act in the step."""
    segment: int
    start: float
    end: float
    cause: int
    """Number of the event that had to end before this one could start; -1 at the beginning of the step."""


def run(acts: Sequence[Act], n_segments: int, n_calls: int, n_steps: int) -> float:
    """Seconds of the last of some steps that follow each other.

    A call and a move begin when all of their ranks are free, and the copies that they use are loaded. Outputs are
    received from the moment at which both their call has ended and the receiver is free. Reloads and offloads go on
    beside what follows; the next call waits for offloads before it receives or loads anything. At the end of a step all
    ranks meet.

    Args:
        acts: what is done in a step, in order.
        n_segments: number of segments.
        n_calls: number of calls of the graph.
        n_steps: number of steps.
    """
    clock, ended = [0.0] * n_segments, [0.0] * n_calls
    left = [0.0] * n_segments
    """When the last offload of each segment ends."""
    loaded: dict[tuple[int, int], float] = {}
    """When the last reload of a copy on a segment ends."""
    start = end = 0.0
    for _ in range(n_steps):
        start = end
        for kind, _, segments, seconds, _, call, copies in acts:
            if kind == "call" or kind == "move":
                others = left if kind == "call" else clock
                begin = max([max(clock[one], others[one]) for one in segments])
                if loaded:
                    begin = max([begin, *[loaded.get((copy, one), 0.0) for copy in copies for one in segments]])
                done = begin + seconds
                for one in segments:
                    clock[one] = done
                if kind == "call":
                    ended[call] = done
            elif kind == "data":
                for one in segments:
                    clock[one] = max(clock[one], left[one], ended[call]) + seconds
            elif kind == "reload":
                for one in segments:
                    loaded[copies[0], one] = max(clock[one], left[one]) + seconds
            else:
                for one in segments:
                    left[one] = max(clock[one], left[one]) + seconds
        end = max(clock)
        clock = [end] * n_segments
    return end - start


def events(acts: Sequence[Act], n_segments: int, n_calls: int, n_steps: int) -> list[Event]:
    """The events of the last of some steps, by the rules of `run`, in the order of the acts; it begins at 0.

    Args:
        acts: what is done in a step, in order.
        n_segments: number of segments.
        n_calls: number of calls of the graph.
        n_steps: number of steps.
    """
    free, left = ([(0.0, -1)] * n_segments for _ in range(2))
    """Moments, and the events that ended then."""
    loaded: dict[tuple[int, int], tuple[float, int]] = {}
    """The same for the last reload of a copy on a segment."""
    ended = [(0.0, -1)] * n_calls
    found: list[Event] = []
    for _ in range(n_steps):
        end = max(free)[0]
        left = [(moment - end, -1) for moment, _ in left]
        loaded = {key: (moment - end, -1) for key, (moment, _) in loaded.items()}
        free, found = [(0.0, -1)] * n_segments, []
        for number, (kind, _, segments, seconds, _, call, copies) in enumerate(acts):
            meet = max(max(free[one], left[one] if kind == "call" else free[one]) for one in segments)
            meet = max([meet, *[loaded.get((copy, one), meet) for copy in copies for one in segments]])
            for one in segments:
                own = free[one] if kind == "move" else max(free[one], left[one])
                start, cause = {"call": meet, "move": meet, "data": max(own, ended[call])}.get(kind, own)
                moment = (start + seconds, len(found))
                found.append(Event(number, one, start, start + seconds, cause))
                if kind == "reload":
                    loaded[copies[0], one] = moment
                elif kind == "offload":
                    left[one] = moment
                else:
                    free[one] = moment
            if kind == "call":
                ended[call] = free[segments[0]]
    return found
