"""Cuts the transfers of a plan into messages and orders them: pure, the same on both ends, no torch.

Each pair of ranks has a list of messages, which both ranks derive from the plan: large boxes are cut, small ones
coalesced. All messages of a reallocation have one global order, first by their number in the list of their pair. Each
rank processes its messages in that order, as many at a time as its staging memory allows. This cannot deadlock: of all
messages that are not yet done, the first one in the order is in flight on both of its ends, since all messages before
it are done there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from reallm.model.sharding import Box
from reallm.reallocation.types import Transfer


class TensorSlice(NamedTuple):
    """A box of one parameter, in whole-tensor coordinates."""

    name: str
    box: Box


class Message(NamedTuple):
    """Slices that are sent together, concatenated."""

    number: int
    """Number of the message in the list of its pair of ranks."""
    source: int
    target: int
    slices: tuple[TensorSlice, ...]

    @property
    def numel(self) -> int:
        """Number of elements of all slices."""
        return sum(one.box.numel for one in self.slices)


@dataclass(frozen=True)
class Limits:
    """Limits of the sizes of messages and of the messages in flight; the same on all ranks.

    They bound the staging memory of a rank to `depth * batch_bytes`.
    """

    small_bytes: int = 128 << 10
    """Slices below this size are coalesced: a copy costs less than a message."""
    message_bytes: int = 8 << 20
    """Maximum size of a message; larger boxes are cut."""
    batch_bytes: int = 16 << 20
    """Maximum size of the messages that need staging memory in a batch, which is posted at once."""
    batch_messages: int = 256
    """Maximum number of messages in a batch."""
    depth: int = 4
    """Maximum number of batches in flight."""

    def __post_init__(self) -> None:
        assert 0 < self.message_bytes <= self.batch_bytes
        assert self.small_bytes <= self.message_bytes
        assert min(self.batch_messages, self.depth) > 0


def messages_between(transfers: Iterable[Transfer], itemsize: int, limits: Limits) -> Iterator[Message]:
    """The messages of one pair of ranks, in the order of its transfers: large slices first, then coalesced small ones.

    Args:
        transfers: all transfers from one rank to another.
        itemsize: bytes of an element as it is sent.
        limits: limits of the sizes of messages.
    """
    max_numel = max(limits.message_bytes // itemsize, 1)
    number, pending, pending_numel = 0, list[TensorSlice](), 0
    coalesced: list[tuple[TensorSlice, ...]] = []
    source = target = -1
    for transfer in transfers:
        source, target, numel = transfer.source, transfer.target, transfer.box.numel
        if numel * itemsize >= limits.small_bytes:
            boxes = split_box(transfer.box, max_numel)
            for name in transfer.names:
                for box in boxes:
                    yield Message(number, source, target, (TensorSlice(name, box),))
                    number += 1
            continue
        for name in transfer.names if numel else ():
            if pending_numel + numel > max_numel:
                coalesced.append(tuple(pending))
                pending, pending_numel = [], 0
            pending.append(TensorSlice(name, transfer.box))
            pending_numel += numel
    for slices in (*coalesced, tuple(pending)):
        if slices:
            yield Message(number, source, target, slices)
            number += 1


def split_box(box: Box, max_numel: int) -> list[Box]:
    """Split a box into boxes of at most `max_numel` elements, of whole rows if a row is not larger than that.

    >>> split_box(Box((0, 0), (5, 4)), 8)
    [Box(starts=(0, 0), stops=(2, 4)), Box(starts=(2, 0), stops=(4, 4)), Box(starts=(4, 0), stops=(5, 4))]
    """
    if box.numel <= max_numel:
        return [box]
    dim = next(dim for dim, size in enumerate(box.shape) if size > 1)
    n_rows, row_numel = box.shape[dim], box.numel // box.shape[dim]
    step = max(max_numel // row_numel, 1)
    pieces = [box.narrowed(dim, start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
    if row_numel <= max_numel:
        return pieces
    return [smaller for piece in pieces for smaller in split_box(piece, max_numel)]


def ordered_messages(transfers: Sequence[Transfer], n_ranks: int, itemsize: int, limits: Limits) -> list[Message]:
    """The messages that one rank sends and receives, in the global order.

    Messages of the same number are ordered by the distance of their ranks, so that not all ranks send to the same one.

    Args:
        transfers: all sends and receives of the rank.
        n_ranks: a number above all ranks of the plan; the same on all of them.
        itemsize: bytes of an element as it is sent.
        limits: limits of the sizes of messages.
    """
    by_pair: dict[tuple[int, int], list[Transfer]] = {}
    for transfer in transfers:
        by_pair.setdefault((transfer.source, transfer.target), []).append(transfer)
    messages = [message for pair in by_pair.values() for message in messages_between(pair, itemsize, limits)]
    return sorted(messages, key=lambda one: (one.number, (one.target - one.source) % n_ranks, one.source))


def batch_ranges(staging_bytes: Sequence[int], limits: Limits) -> list[range]:
    """Divide consecutive messages into batches that are posted together, as large as the limits allow.

    Args:
        staging_bytes: staging memory of each message, in order; 0 for messages that need none.
        limits: limits of the sizes of batches.
    """
    batches, start, total = [], 0, 0
    for index, n_bytes in enumerate(staging_bytes):
        if index > start and (total + n_bytes > limits.batch_bytes or index - start == limits.batch_messages):
            batches.append(range(start, index))
            start, total = index, 0
        total += n_bytes
    return [*batches, range(start, len(staging_bytes))] if staging_bytes else batches
