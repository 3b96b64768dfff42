"""Sends and receives messages: directly from and into tensors if slices are contiguous, else via staging memory."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.errors import PeerError
from reallm.parallel.mesh import Group
from reallm.reallocation.messages import Limits, Message, TensorSlice, batch_ranges


@dataclass(frozen=True)
class Endpoint:
    """One end of a message: the message as seen by its sender or its receiver."""

    message: Message
    is_send: bool
    views: tuple[Tensor, ...]
    """View of each slice in the tensor that it comes from or goes to."""
    in_place: bool
    """Whether it is one slice that is sent from or received into its view, contiguous and in the wire dtype."""

    @property
    def rank(self) -> int:
        """The rank of this endpoint."""
        return self.message.source if self.is_send else self.message.target

    @property
    def peer(self) -> int:
        """The rank on the other end."""
        return self.message.target if self.is_send else self.message.source

    @property
    def awaited(self) -> str:
        """The action expected of the peer, as worded in errors."""
        first, *others = (one.name for one in self.message.slices)
        return f"to {'take' if self.is_send else 'send'} '{first}'" + (f" and {len(others)} more" if others else "")


OnReceive = Callable[[Endpoint, TensorSlice, Tensor, Tensor], None]
"""`(endpoint, slice, values, view)`: writes received values into their view; both are the same tensor if received in
place."""


@dataclass(frozen=True)
class Deadline:
    """The time at which a rank gives up; with `timeout` None, the process group's timeout for each operation."""

    timeout: timedelta | None
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def expired(self) -> bool:
        """Whether the deadline has passed or nearly so: an operation that failed just before it timed out."""
        return self.timeout is not None and self.elapsed_s > self.timeout.total_seconds() - 0.05

    @property
    def remaining(self) -> timedelta | None:
        """Remaining time, at least a millisecond; None without a timeout."""
        if self.timeout is None:
            return None
        return max(self.timeout - timedelta(seconds=self.elapsed_s), timedelta(milliseconds=1))

    def wait(self, work: dist.Work, grace: timedelta = timedelta()) -> None:
        """Wait for a message or a collective until the deadline, plus `grace`."""
        if self.remaining is None:
            work.wait()
        else:
            work.wait(self.remaining + grace)


@dataclass
class TransferStats:
    """Statistics of the messages sent and received."""

    bytes_sent: int = 0
    bytes_received: int = 0
    n_messages: int = 0
    staging_bytes: int = 0
    """Peak memory in addition to the tensors that messages are sent from and received into."""


@dataclass(frozen=True)
class _InFlight:
    """A batch of messages that has been posted."""

    endpoints: Sequence[Endpoint]
    works: Sequence[dist.Work]
    buffers: Sequence[Tensor]
    staging: Tensor | None


def transfer(
    endpoints: Sequence[Endpoint],
    group: Group,
    *,
    wire_dtype: torch.dtype,
    device: torch.device,
    limits: Limits,
    deadline: Deadline,
    on_receive: OnReceive,
    overlap: Callable[[], None],
) -> TransferStats:
    """Send and receive all messages of this rank; returns when all of them are done.

    Args:
        endpoints: endpoints of this rank's messages, in the global order (see `messages`).
        group: the ranks that exchange messages.
        wire_dtype: dtype in which elements are sent.
        device: device of the tensors and the staging memory.
        limits: limits of the messages in flight.
        deadline: deadline for all messages together.
        on_receive: called for each received slice, in order.
        overlap: called once, while the first messages are in flight.

    Raises:
        PeerError: a rank has not sent or received a message in time, or has ended. The process group can no longer be
            used.
    """
    stats, in_flight, free = TransferStats(), deque[_InFlight](), list[Tensor]()
    staging_bytes = [0 if one.in_place else one.message.numel * wire_dtype.itemsize for one in endpoints]
    batches = batch_ranges(staging_bytes, limits)
    staging_numel = max((sum(staging_bytes[batch.start : batch.stop]) for batch in batches), default=0)
    staging_numel //= wire_dtype.itemsize

    def start(batch: range) -> None:
        staging = None
        if any(staging_bytes[batch.start : batch.stop]):
            if not free:
                free.append(torch.empty(staging_numel, dtype=wire_dtype, device=device))
                stats.staging_bytes += staging_numel * wire_dtype.itemsize
            staging = free.pop()
        in_flight.append(_start(endpoints[batch.start : batch.stop], group, staging, deadline))

    def finish() -> None:
        batch = in_flight.popleft()
        for endpoint, work, buffer in zip(batch.endpoints, batch.works, batch.buffers, strict=True):
            with _peer_errors(endpoint, deadline):
                deadline.wait(work)
            stats.n_messages += 1
            if endpoint.is_send:
                stats.bytes_sent += buffer.nbytes
                continue
            stats.bytes_received += buffer.nbytes
            slices = endpoint.message.slices
            for one, values, view in zip(slices, _values_of_slices(endpoint, buffer), endpoint.views, strict=True):
                on_receive(endpoint, one, values, view)
        if batch.staging is not None:
            free.append(batch.staging)

    for batch in batches[: limits.depth]:
        start(batch)
    overlap()
    for batch in batches[limits.depth :]:
        finish()
        start(batch)
    while in_flight:
        finish()
    return stats


def _start(endpoints: Sequence[Endpoint], group: Group, staging: Tensor | None, deadline: Deadline) -> _InFlight:
    buffers, used = [], 0
    for endpoint in endpoints:
        if endpoint.in_place:
            buffers.append(endpoint.views[0].view(-1))
            continue
        assert staging is not None
        buffer = staging[used : used + endpoint.message.numel]
        used += buffer.numel()
        buffers.append(buffer)
        if endpoint.is_send:
            for values, view in zip(_values_of_slices(endpoint, buffer), endpoint.views, strict=True):
                values.copy_(view)
    return _InFlight(endpoints, post(endpoints, buffers, group, deadline), buffers, staging)


def post(endpoints: Sequence[Endpoint], buffers: Sequence[Tensor], group: Group, deadline: Deadline) -> list[dist.Work]:
    """Post the send or receive of each flat buffer with `batch_isend_irecv`; returns the work to wait for, for each."""
    operations = [
        # As bytes: not every backend knows every dtype.
        dist.P2POp(dist.isend if one.is_send else dist.irecv, buffer.view(torch.uint8), one.peer, group)
        for one, buffer in zip(endpoints, buffers, strict=True)
    ]
    with _peer_errors(endpoints[0], deadline):
        works = dist.batch_isend_irecv(operations)
    # NCCL has one for all messages of a batch.
    return works if len(works) == len(operations) else [works[0]] * len(operations)


def _values_of_slices(endpoint: Endpoint, buffer: Tensor) -> Sequence[Tensor]:
    """The buffer of a message as one view for each of its slices."""
    if endpoint.in_place:
        return endpoint.views
    boxes = [one.box for one in endpoint.message.slices]
    return [piece.view(box.shape) for piece, box in zip(buffer.split([box.numel for box in boxes]), boxes, strict=True)]


@contextmanager
def _peer_errors(endpoint: Endpoint, deadline: Deadline) -> Iterator[None]:
    """Context that turns a backend's errors into errors that name the peer and the parameter."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if deadline.expired:
            raise timed_out(endpoint.rank, endpoint.peer, endpoint.awaited, deadline) from error
        raise PeerError(
            f"rank {endpoint.rank} lost rank {endpoint.peer} after {deadline.elapsed_s:.1f} s, waiting for it "
            f"{endpoint.awaited}: that rank has ended or given up; see its own message"
        ) from error


def timed_out(rank: int, peer: int, awaited: str, deadline: Deadline) -> PeerError:
    """The error of a rank that has waited for a peer until the deadline, such as `to send 'layers.1.attn.q.weight'`."""
    return PeerError(
        f"rank {rank} waited {deadline.elapsed_s:.1f} s for rank {peer} {awaited}: that rank is missing, stuck, or "
        "waits for another one; see what it is doing, or raise the timeout"
    )
