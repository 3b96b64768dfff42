"""Messages between ranks: from and to their place in a tensor where that is contiguous, else through staging memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.errors import PeerError
from reallm.reallocation.messages import Limits, Message, TensorSlice, batches


@dataclass(frozen=True)
class Endpoint:
    """A message on one of its ends."""

    message: Message
    is_sent: bool
    places: tuple[Tensor, ...]
    """The view of each part in the tensor that it comes from or goes to."""
    in_place: bool
    """Whether it is its only part as that lies in memory: contiguous and of the dtype of the way."""

    @property
    def peer(self) -> int:
        """The rank on the other end."""
        return self.message.target if self.is_sent else self.message.source

    @property
    def what(self) -> str:
        """As errors name it."""
        first, *others = (part.name for part in self.message.parts)
        return f"'{first}'" + (f" and {len(others)} more" if others else "")


Arrived = Callable[[Endpoint, TensorSlice, Tensor, Tensor], None]
"""Puts a part into its place: `(parcel, part, values, place)`; both tensors are the same where it is there already."""


@dataclass(frozen=True)
class Deadline:
    """When a rank gives up; `timeout` None: when the process group does."""

    timeout: timedelta | None
    began: float = field(default_factory=time.monotonic)

    @property
    def passed_s(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    @property
    def is_over(self) -> bool:
        """Whether it is time to give up; what has ended a little earlier than that has ended because of it."""
        return self.timeout is not None and self.passed_s > self.timeout.total_seconds() - 0.05

    def wait(self, work: dist.Work, grace: timedelta = timedelta()) -> None:
        """For a message or a collective, as long as there is time left."""
        if self.timeout is None:
            work.wait()
        else:
            left = self.timeout + grace - timedelta(seconds=self.passed_s)
            work.wait(max(left, timedelta(milliseconds=1)))


@dataclass
class TransferStats:
    """What was sent and received, without what came from this rank itself."""

    bytes_sent: int = 0
    bytes_received: int = 0
    n_messages: int = 0
    staging_bytes: int = 0
    """The most memory that was held at a time beside what the messages came from and went to."""


@dataclass(frozen=True)
class _Flight:
    """A batch under way."""

    parcels: Sequence[Endpoint]
    works: Sequence[dist.Work]
    buffers: Sequence[Tensor]
    staging: Tensor | None


def transfer(
    parcels: Sequence[Endpoint],
    *,
    wire: torch.dtype,
    device: torch.device,
    limits: Limits,
    deadline: Deadline,
    arrived: Arrived,
    meanwhile: Callable[[], None],
) -> TransferStats:
    """Send and receive; returns when all is in place.

    Args:
        parcels: all messages of this rank, in the order of the job (see `messages`).
        wire: dtype of what is sent.
        device: where the messages lie.
        limits: of what is under way at a time.
        deadline: for all together.
        arrived: called for each part that was received, in order.
        meanwhile: called once, while the first messages are on their way.

    Raises:
        PeerError: a rank has not sent or taken a message in time, or is gone. The process group cannot be used any
            more.
    """
    traffic, flights, free = TransferStats(), deque[_Flight](), list[Tensor]()
    staged = [0 if parcel.in_place else parcel.message.numel * wire.itemsize for parcel in parcels]
    groups = batches(staged, limits)
    room = max((sum(staged[group.start : group.stop]) for group in groups), default=0) // wire.itemsize

    def post(group: range) -> None:
        staging = None
        if any(staged[group.start : group.stop]):
            if not free:
                free.append(torch.empty(room, dtype=wire, device=device))
                traffic.staging_bytes += room * wire.itemsize
            staging = free.pop()
        flights.append(_posted(parcels[group.start : group.stop], staging, deadline))

    def finish() -> None:
        flight = flights.popleft()
        for parcel, work, buffer in zip(flight.parcels, flight.works, flight.buffers, strict=True):
            with _Naming(parcel, deadline):
                deadline.wait(work)
            traffic.n_messages += 1
            if parcel.is_sent:
                traffic.bytes_sent += buffer.nbytes
                continue
            traffic.bytes_received += buffer.nbytes
            for part, values, place in zip(parcel.message.parts, _pieces(parcel, buffer), parcel.places, strict=True):
                arrived(parcel, part, values, place)
        if flight.staging is not None:
            free.append(flight.staging)

    for group in groups[: limits.depth]:
        post(group)
    meanwhile()
    for group in groups[limits.depth :]:
        finish()
        post(group)
    while flights:
        finish()
    return traffic


def _posted(parcels: Sequence[Endpoint], staging: Tensor | None, deadline: Deadline) -> _Flight:
    buffers, used = [], 0
    for parcel in parcels:
        if parcel.in_place:
            buffers.append(parcel.places[0].view(-1))
            continue
        assert staging is not None
        buffer = staging[used : used + parcel.message.numel]
        used += buffer.numel()
        buffers.append(buffer)
        if parcel.is_sent:
            for values, place in zip(_pieces(parcel, buffer), parcel.places, strict=True):
                values.copy_(place)
    works = exchange(parcels, buffers, deadline)
    return _Flight(parcels, works, buffers, staging)


def exchange(parcels: Sequence[Endpoint], buffers: Sequence[Tensor], deadline: Deadline) -> list[dist.Work]:
    """Post a message from or into each flat buffer; what to wait for, for each of them."""
    operations = [
        # As bytes: not every backend knows every dtype.
        dist.P2POp(dist.isend if parcel.is_sent else dist.irecv, buffer.view(torch.uint8), parcel.peer)
        for parcel, buffer in zip(parcels, buffers, strict=True)
    ]
    with _Naming(parcels[0], deadline):
        works = dist.batch_isend_irecv(operations)
    # NCCL has one for all messages of a batch.
    return works if len(works) == len(operations) else [works[0]] * len(operations)


def _pieces(parcel: Endpoint, buffer: Tensor) -> Sequence[Tensor]:
    """The buffer of a message as its parts."""
    if parcel.in_place:
        return parcel.places
    boxes = [part.box for part in parcel.message.parts]
    return [piece.view(box.shape) for piece, box in zip(buffer.split([box.numel for box in boxes]), boxes, strict=True)]


class _Naming:
    """Turns what a backend raises into an error that names the other rank and the parameter."""

    def __init__(self, parcel: Endpoint, deadline: Deadline) -> None:
        self.parcel, self.deadline = parcel, deadline

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
            return
        parcel, seconds = self.parcel, self.deadline.passed_s
        here = parcel.message.source if parcel.is_sent else parcel.message.target
        doing = "to take" if parcel.is_sent else "to send"
        if self.deadline.is_over:
            raise PeerError(
                f"rank {here} waited {seconds:.1f} s for rank {parcel.peer} {doing} {parcel.what}: that rank is "
                "missing, stuck, or waits for another one; see what it is doing, or raise the timeout"
            ) from error
        raise PeerError(
            f"rank {here} lost rank {parcel.peer} after {seconds:.1f} s, waiting for it {doing} {parcel.what}: that "
            "rank has ended or given up; see its own message"
        ) from error
