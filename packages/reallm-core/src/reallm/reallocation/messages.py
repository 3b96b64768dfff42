"""Which messages carry the moves of a plan, and in which order: pure, the same on both ends, no torch.

Each pair of ranks has a list of messages that both derive from their own plan: large parts are cut, small ones bundled.
All messages of a job have one order, by their place in the list of their pair first. Each rank works through its own
ones in that order, as many at a time as its staging memory allows. This cannot lock: of all messages that are not yet
done, the first one in the order is under way on both of its ends, since there all before it are done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from reallm.model.sharding import Box
from reallm.reallocation.types import Transfer


class TensorSlice(NamedTuple):
    """A part of one parameter, in coordinates of the whole one."""

    name: str
    box: Box


class Message(NamedTuple):
    """Parts that travel together, one after the other."""

    place: int
    """In the list of its pair."""
    source: int
    target: int
    parts: tuple[TensorSlice, ...]

    @property
    def numel(self) -> int:
        """Elements of all parts."""
        return sum(part.box.numel for part in self.parts)


@dataclass(frozen=True)
class Limits:
    """Sizes of messages and of what is under way; the same on all ranks. They bound the staging memory of a rank to
    `depth * batch_bytes`."""

    small_bytes: int = 128 << 10
    """Parts below this are bundled: a copy costs less than a message."""
    message_bytes: int = 8 << 20
    """Of the largest message; larger parts are cut."""
    batch_bytes: int = 16 << 20
    """Of the messages that are posted together, those that are not sent from or received in their place."""
    batch_messages: int = 256
    """The most that are posted together."""
    depth: int = 4
    """The most batches under way."""

    def __post_init__(self) -> None:
        assert 0 < self.message_bytes <= self.batch_bytes
        assert self.small_bytes <= self.message_bytes
        assert min(self.batch_messages, self.depth) > 0


def messages_between(moves: Iterable[Transfer], itemsize: int, limits: Limits) -> Iterator[Message]:
    """The messages of one pair of ranks, in the order of its moves: large parts first, then bundles of small ones.

    Args:
        moves: all that one rank sends another.
        itemsize: bytes of an element on its way.
        limits: of the sizes.
    """
    most = max(limits.message_bytes // itemsize, 1)
    place, small, bundled = 0, list[TensorSlice](), 0
    bundles: list[tuple[TensorSlice, ...]] = []
    source = target = -1
    for move in moves:
        source, target, numel = move.source, move.target, move.box.numel
        if numel * itemsize >= limits.small_bytes:
            boxes = cut(move.box, most)
            for name in move.names:
                for box in boxes:
                    yield Message(place, source, target, (TensorSlice(name, box),))
                    place += 1
            continue
        for name in move.names if numel else ():
            if bundled + numel > most:
                bundles.append(tuple(small))
                small, bundled = [], 0
            small.append(TensorSlice(name, move.box))
            bundled += numel
    for parts in (*bundles, tuple(small)):
        if parts:
            yield Message(place, source, target, parts)
            place += 1


def cut(box: Box, most: int) -> list[Box]:
    """A box in pieces of at most `most` elements, each with whole rows if rows are not larger than that.

    >>> cut(Box((0, 0), (5, 4)), 8)
    [Box(starts=(0, 0), stops=(2, 4)), Box(starts=(2, 0), stops=(4, 4)), Box(starts=(4, 0), stops=(5, 4))]
    """
    if box.numel <= most:
        return [box]
    dim = next(dim for dim, size in enumerate(box.shape) if size > 1)
    n_rows, row = box.shape[dim], box.numel // box.shape[dim]
    step = max(most // row, 1)
    pieces = [box.narrowed(dim, start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
    return pieces if row <= most else [smaller for piece in pieces for smaller in cut(piece, most)]


def in_order(moves: Sequence[Transfer], n_ranks: int, itemsize: int, limits: Limits) -> list[Message]:
    """The messages of a rank, those that it sends and those that it gets, in the order of the whole job.

    Neighbours of a place differ in how far they go: no rank is the target of all at once.
    """
    by_pair: dict[tuple[int, int], list[Transfer]] = {}
    for move in moves:
        by_pair.setdefault((move.source, move.target), []).append(move)
    messages = [message for pair in by_pair.values() for message in messages_between(pair, itemsize, limits)]
    return sorted(messages, key=lambda one: (one.place, (one.target - one.source) % n_ranks, one.source))


def batches(staged_bytes: Sequence[int], limits: Limits) -> list[range]:
    """Which messages are posted together: as many neighbours as the limits allow.

    Args:
        staged_bytes: of each message, in order; 0 for those that need no staging memory.
        limits: of a batch.
    """
    found, start, held = [], 0, 0
    for index, n_bytes in enumerate(staged_bytes):
        if index > start and (held + n_bytes > limits.batch_bytes or index - start == limits.batch_messages):
            found.append(range(start, index))
            start, held = index, 0
        held += n_bytes
    return [*found, range(start, len(staged_bytes))] if staged_bytes else found
