"""The end of a reallocation: ranks compare checksums and agree on whether all of them have succeeded."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.errors import PeerError
from reallm.model.sharding import Box
from reallm.parallel.mesh import Group, all_gather_single
from reallm.reallocation.messages import Message, TensorSlice
from reallm.reallocation.transfer import Deadline, Endpoint, TransferStats, post

GRACE = timedelta(seconds=2)
"""Additional time that a finished rank waits: the others can name the rank that they miss, and what they wait for."""
_MODULUS = 1 << 40  # sums over all ranks stay below 2**63


@dataclass
class Checksums:
    """Checksums of all slices that this rank has sent and received, by peer, in the order of their messages."""

    _sent: dict[int, list[Tensor]] = field(default_factory=dict)
    _received: dict[int, list[tuple[TensorSlice, Tensor]]] = field(default_factory=dict)

    def add_sent(self, endpoint: Endpoint, wire_dtype: torch.dtype) -> None:
        """Add the slices of a message, read from the tensors that they are sent from."""
        for view in endpoint.views:
            self._sent.setdefault(endpoint.peer, []).append(checksum(view.to(wire_dtype)))

    def add_received(self, endpoint: Endpoint, one: TensorSlice, values: Tensor) -> None:
        """Add a received slice."""
        self._received.setdefault(endpoint.peer, []).append((one, checksum(values)))

    def exchange(
        self, rank: int, group: Group, *, device: torch.device, deadline: Deadline, stats: TransferStats
    ) -> str | None:
        """Send and receive the checksums; returns the error message of the first slice that differs, if any does."""
        endpoints, buffers = [], []
        for peer, sums in self._sent.items():
            endpoints.append(_checksum_endpoint(rank, peer, is_send=True))
            buffers.append(torch.cat(sums))
        for peer, received in self._received.items():
            endpoints.append(_checksum_endpoint(peer, rank, is_send=False))
            buffers.append(torch.empty(2 * len(received), dtype=torch.int64, device=device))
        if not endpoints:
            return None
        for work in post(endpoints, buffers, group, deadline):
            deadline.wait(work)
        stats.n_messages += len(endpoints)
        for endpoint, buffer in zip(endpoints, buffers, strict=True):
            if endpoint.is_send:
                stats.bytes_sent += buffer.nbytes
                continue
            stats.bytes_received += buffer.nbytes
            received = self._received[endpoint.peer]
            equal = (torch.cat([sums for _, sums in received]) == buffer).view(-1, 2).all(1).tolist()
            if not all(equal):
                one, _ = received[equal.index(False)]
                return (
                    f"rank {rank}: '{one.name}' {list(one.box.shape)} from rank {endpoint.peer} is not what that rank "
                    "has sent: its checksum differs; check the memory and the network of both, and start again"
                )
        return None


def agree_on_result(
    group: Group,
    messages: Sequence[Message],
    settings: str,
    error: str | None,
    *,
    itemsize: int,
    device: torch.device,
    deadline: Deadline,
) -> None:
    """Return when all ranks of the group have succeeded.

    Args:
        group: the ranks of the reallocation.
        messages: messages that this rank has sent and received.
        settings: text that is equal on all ranks that were called with the same arguments.
        error: error message of this rank; None if it has succeeded.
        itemsize: bytes of an element as it is sent.
        device: device of the tensors that the group's backend accepts.
        deadline: deadline of the reallocation.

    Raises:
        PeerError: a rank has not succeeded, or was called with other arguments; raised on all ranks.
    """
    rank = dist.get_rank()
    # Each message is added by its sender and subtracted by its receiver: the sum is 0 if all have the same plan.
    balance = sum((1 if one.source == rank else -1) * _message_hash(one, itemsize) for one in messages)
    state = [int(error is not None), zlib.crc32(settings.encode()), balance % _MODULUS]
    states = _all_gather(torch.tensor(state, dtype=torch.int64, device=device), group, deadline).tolist()
    if error is not None:
        raise PeerError(error)
    ranks = dist.get_process_group_ranks(group)
    for other, (failed, settings_hash, _) in zip(ranks, states, strict=True):
        if failed:
            raise PeerError(f"rank {other} did not receive its parameters as they were sent; see its own message")
        if settings_hash != states[0][1]:
            raise PeerError(
                f"rank {other} moves parameters with other settings (dtype, eta, checksum) than rank {ranks[0]}; "
                "all ranks must make the same call"
            )
    if sum(balance for *_, balance in states) % _MODULUS:
        raise PeerError(f"rank {rank}: the ranks follow different plans; all must name the same model and layouts")


def _all_gather(state: Tensor, group: Group, deadline: Deadline) -> Tensor:
    states = state.new_empty(dist.get_world_size(group), state.numel())
    try:
        work = all_gather_single(states.view(-1), state, group=group, async_op=True)
        deadline.wait(work, GRACE)
    except RuntimeError as error:
        raise PeerError(
            f"rank {dist.get_rank()} waited {deadline.elapsed_s:.1f} s for all ranks to finish the reallocation: one "
            "is missing, stuck or gone; see the messages of the others, or raise the timeout"
        ) from error
    return states


def _message_hash(message: Message, itemsize: int) -> int:
    text = f"{message.source} {message.target} {message.number} {message.numel * itemsize}"
    return zlib.crc32(text.encode())


def _checksum_endpoint(source: int, target: int, *, is_send: bool) -> Endpoint:
    message = Message(0, source, target, (TensorSlice("its checksums", Box((), ())),))
    return Endpoint(message, is_send, (), in_place=False)


_INT_DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHUNK = 1 << 18

SCRATCH_BYTES = 4 * 8 * _CHUNK
"""Maximum memory that `checksum` takes, in addition to a copy of values that are not contiguous."""


def checksum(values: Tensor) -> Tensor:
    """The sum of all bit patterns, and their sum weighted by position, modulo 2**64.

    The first changes if an element is altered, the second if two elements are swapped.

    Args:
        values: any shape and dtype of up to 8 bytes.

    Returns:
        `[2]`, int64, on the device of the values. The same values give the same numbers on every device.
    """
    flat = values.detach().contiguous().view(-1)
    bits = flat.view(_INT_DTYPES[flat.element_size()])
    sums = torch.zeros(2, dtype=torch.int64, device=values.device)
    for start in range(0, bits.numel(), _CHUNK):
        chunk = bits[start : start + _CHUNK].long()
        sums[0] += chunk.sum()
        sums[1] += chunk.mul_(torch.arange(start + 1, start + 1 + chunk.numel(), device=chunk.device)).sum()
    return sums
