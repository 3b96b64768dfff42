"""`MemoryLevels`: how many bytes ranks hold as they walk through a step. Imports no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reallm.planning.places import Place
from reallm.planning.rank_sets import RankSet, Segments
from reallm.planning.steps import Item
from reallm.planning.timing import Act, Event
from reallm.specs import ModelFunctionCall


@dataclass(frozen=True)
class RankMemory:
    """The memory of a rank."""

    over_time: tuple[tuple[float, int], ...] = ((0.0, 0),)
    """Times of a step in seconds, ascending, and the bytes that are held from then on."""
    peak: int = 0
    """The most bytes at a time, in the first step or in those that follow."""
    peak_call: str = ""
    """The call that is computed then, or whose weights are moved."""
    peak_items: Mapping[str, int] = field(default_factory=dict)
    """What is held then: `actor optimizer` -> bytes, the largest first."""
    host_peak: int = 0
    """The most bytes in host memory."""


class _Copy:
    """A copy of a role's model."""

    __slots__ = ("has_optimizer", "has_parameters", "offloaded", "optimizer", "parameters", "role", "segments", "what")

    def __init__(self, role: str, what: str, segments: tuple[int, ...]) -> None:
        self.role, self.what, self.segments = role, what, segments
        self.parameters = self.optimizer = 0
        """Bytes on a rank."""
        self.has_parameters = self.has_optimizer = False
        """Whether they have been made."""
        self.offloaded: set[str] = set()
        """What is in host memory."""


def least_peak(calls: Sequence[ModelFunctionCall], places: Sequence[Place], segments: Segments) -> int:
    """The most bytes on a rank once all copies and optimizers are there, at least; exactly if nothing is offloaded.

    Of a copy that is offloaded only what is there while its own calls are computed.
    """
    copies: dict[int, _Resident] = {}
    for call, one in zip(calls, places, strict=True):
        if one.copy >= 0 and not call.precompute:
            found = copies.get(one.copy)
            if found is None:
                found = copies[one.copy] = _Resident(one.ranks)
            found.add(one)
    kept, during = [0] * len(segments.parts), [0] * len(segments.parts)
    for copy in copies.values():
        n_bytes = copy.parameters + copy.optimizer
        for segment in segments.of(copy.ranks):
            if copy.offloaded:
                during[segment] = max(during[segment], copy.in_call)
            else:
                kept[segment] += n_bytes
                during[segment] = max(during[segment], copy.transient)
    return max(map(sum, zip(kept, during, strict=True)))


class _Resident:
    """A copy of a role's model, and the bytes that it takes on a rank."""

    __slots__ = ("in_call", "offloaded", "optimizer", "parameters", "ranks", "transient")

    def __init__(self, ranks: RankSet) -> None:
        self.ranks, self.offloaded = ranks, False
        self.parameters = self.optimizer = self.transient = self.in_call = 0

    def add(self, one: Place) -> None:
        """Note a call that uses the copy."""
        memory = one.memory
        self.parameters = max(self.parameters, memory.parameters)
        self.optimizer = max(self.optimizer, memory.optimizer)
        self.transient = max(self.transient, one.transient)
        self.in_call = max(self.in_call, memory.kept + one.transient)
        self.offloaded = self.offloaded or one.offload


class MemoryLevels:
    """Bytes on the ranks of each segment, from the first step on.

    At the beginning the parameters of all homes are there. Other copies and the optimizer's state are made when they
    are first used. What is offloaded is held until the next call of the rank.

    Args:
        calls: the calls of the graph.
        places: where each is computed.
        segments: the segments of ranks.
        homes: number of each call whose role's home another call chooses -> number of that call.
        itemized: whether to note what the bytes are, which takes longer.
    """

    def __init__(
        self,
        calls: Sequence[ModelFunctionCall],
        places: Sequence[Place],
        segments: Segments,
        homes: Mapping[int, int],
        *,
        itemized: bool = False,
    ) -> None:
        n = len(segments.parts)
        self._calls, self._places, self._segments, self._itemized = calls, places, segments, itemized
        self.kept = [0] * n
        """Bytes between calls."""
        self._leaving, self._host = [0] * n, [0] * n
        self._items: list[Counter[str]] = [Counter() for _ in range(n if itemized else 0)]
        self._items_leaving: list[Counter[str]] = [Counter() for _ in range(n if itemized else 0)]
        self.peaks, self.host_peaks = [0] * n, [0] * n
        """The most bytes so far, on the device and in host memory."""
        self.peak_items: list[tuple[str, Mapping[str, int]]] = [("", {})] * n
        """The call of the peak, and what the bytes are; if itemized."""
        self._copies: dict[int, _Copy] = {}
        for number, one in enumerate(places):
            if one.copy < 0 or calls[number].precompute:
                continue
            copy = self._copies.get(one.copy)
            if copy is None:
                home = homes.get(number, number)
                role, is_home = calls[home].role, places[home].copy == one.copy
                what = f"{role} parameters" if is_home else f"{role} parameters for {calls[number].name}"
                copy = self._copies[one.copy] = _Copy(role, what, segments.of(one.ranks))
            copy.parameters = max(copy.parameters, one.memory.parameters)
            copy.optimizer = max(copy.optimizer, one.memory.optimizer)
        for number, one in enumerate(places):
            if one.copy in self._copies and number not in homes:
                self._make(number, self._copies[one.copy])

    def begin(self, item: Item) -> None:
        """Go on to the beginning of an item of a step, and note the peaks while it is done."""
        one = self._places[item.call]
        copy = self._copies.get(one.copy)
        if item.kind == "call" or item.before_call:
            for segment in self._segments.of(one.ranks):
                self._release(segment)
        if copy is None:
            return
        if item.kind == "call":
            self._make(item.call, copy, optimizer=self._calls[item.call].kind == "train_step")
            self._note_peaks(item.call, copy)
        elif item.kind in ("move", "update"):
            self._make(item.call, copy)
        else:
            self._move_to_host(item, copy)

    def transient(self, call: int) -> int:
        """Bytes that a rank holds while a call is computed, more than it keeps."""
        return self._places[call].transient

    def _make(self, call: int, copy: _Copy, *, optimizer: bool = False) -> None:
        """Allocate what of a copy has not been there."""
        if not copy.has_parameters:
            copy.has_parameters = True
            self._add(call, copy, copy.what, copy.parameters)
        if optimizer and not copy.has_optimizer:
            copy.has_optimizer = True
            self._add(call, copy, f"{copy.role} optimizer", copy.optimizer)

    def _move_to_host(self, item: Item, copy: _Copy) -> None:
        """Move a copy to host memory, or back."""
        moved = {copy.what: item.weights * copy.parameters, f"{copy.role} optimizer": item.optimizer * copy.optimizer}
        for what, n_bytes in moved.items():
            is_reload = item.kind == "reload"
            if not n_bytes or is_reload != (what in copy.offloaded):  # in the first step nothing is there to load
                continue
            copy.offloaded ^= {what}
            if is_reload:
                self._add(item.call, copy, what, n_bytes)
            for segment in copy.segments:
                self._host[segment] += -n_bytes if is_reload else n_bytes
                self.host_peaks[segment] = max(self.host_peaks[segment], self._host[segment])
                if not is_reload:
                    self._leaving[segment] += n_bytes
                    if self._itemized:
                        self._items_leaving[segment][what] += n_bytes

    def _add(self, call: int, copy: _Copy, what: str, n_bytes: int) -> None:
        for segment in copy.segments:
            self.kept[segment] += n_bytes
            if self._itemized:
                self._items[segment][what] += n_bytes
            if self.kept[segment] > self.peaks[segment]:
                self._set_peak(segment, self.kept[segment], call, {})

    def _note_peaks(self, call: int, copy: _Copy) -> None:
        more = self._places[call].transient
        for segment in copy.segments:
            if self.kept[segment] + more > self.peaks[segment]:
                self._set_peak(segment, self.kept[segment] + more, call, self._places[call].memory.during)

    def _set_peak(self, segment: int, n_bytes: int, call: int, more: Mapping[str, int]) -> None:
        self.peaks[segment] = n_bytes
        if self._itemized:
            name = self._calls[call].name
            items = {**self._items[segment], **{f"{name} {what}": n for what, n in more.items()}}
            largest = sorted(((what, n) for what, n in items.items() if n), key=lambda item: -item[1])
            self.peak_items[segment] = (name, dict(largest))

    def _release(self, segment: int) -> None:
        """Free what has been offloaded."""
        self.kept[segment] -= self._leaving[segment]
        self._leaving[segment] = 0
        if self._itemized:
            self._items[segment].subtract(self._items_leaving[segment])
            self._items_leaving[segment].clear()


def memory_over_time(
    levels: MemoryLevels, items: Sequence[Item], acts: Sequence[Act], events: Sequence[Event]
) -> list[RankMemory]:
    """The memory of a rank of each segment over a step, whose items `levels` has gone through before.

    Args:
        levels: the levels at the beginning of the step.
        items: what is done in it.
        acts: what of that takes time, in the same order.
        events: when the segments do it.
    """
    times: dict[tuple[int, int], tuple[float, float]] = {
        (event.act, event.segment): (event.start, event.end) for event in events
    }
    found = [[(0.0, n_bytes)] for n_bytes in levels.kept]
    number = 0
    for item in items:
        while item.kind == "call" and acts[number].kind == "data":
            number += 1
        levels.begin(item)
        for segment in acts[number].segments:
            start, end = times[number, segment]
            if item.kind == "call":
                found[segment].append((start, levels.kept[segment] + levels.transient(item.call)))
                start = end
            if item.kind != "offload":
                found[segment].append((start, levels.kept[segment]))
        number += 1
    return [
        RankMemory(
            tuple(found[segment]), levels.peaks[segment], *levels.peak_items[segment], levels.host_peaks[segment]
        )
        for segment in range(len(found))
    ]
