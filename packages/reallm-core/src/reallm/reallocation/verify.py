"""The end of a reallocation: checksums are compared, and all ranks learn whether all have succeeded."""

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
from reallm.parallel.mesh import all_gather_single
from reallm.reallocation.messages import Message, TensorSlice
from reallm.reallocation.transfer import Deadline, Endpoint, TransferStats, exchange

OTHERS_SPEAK = timedelta(seconds=2)
"""How much longer a rank waits that has nothing to do but to hear of the others: they can say which rank is missing."""


_MODULUS = 1 << 40  # sums over all ranks stay below 2**63


@dataclass
class Checks:
    """Fingerprints of all parts that were sent and received, by the other rank, in the order of their messages."""

    _sent: dict[int, list[Tensor]] = field(default_factory=dict)
    _received: dict[int, list[tuple[TensorSlice, Tensor]]] = field(default_factory=dict)

    def sent(self, parcel: Endpoint, wire: torch.dtype) -> None:
        """Note what a message is to bring, from where it comes from."""
        for place in parcel.places:
            self._sent.setdefault(parcel.peer, []).append(checksum(place.to(wire)))

    def received(self, parcel: Endpoint, part: TensorSlice, values: Tensor) -> None:
        """Note what has come."""
        self._received.setdefault(parcel.peer, []).append((part, checksum(values)))

    def first_altered(self, rank: int, device: torch.device, deadline: Deadline, traffic: TransferStats) -> str | None:
        """Exchange the fingerprints; what is wrong, if anything is."""
        parcels, buffers = [], []
        for peer, sums in self._sent.items():
            parcels.append(_parcel(rank, peer))
            buffers.append(torch.cat(sums))
        for peer, received in self._received.items():
            parcels.append(_parcel(peer, rank, is_sent=False))
            buffers.append(torch.empty(2 * len(received), dtype=torch.int64, device=device))
        if not parcels:
            return None
        for work in exchange(parcels, buffers, deadline):
            deadline.wait(work)
        traffic.n_messages += len(parcels)
        for parcel, buffer in zip(parcels, buffers, strict=True):
            if parcel.is_sent:
                traffic.bytes_sent += buffer.nbytes
                continue
            traffic.bytes_received += buffer.nbytes
            received = self._received[parcel.peer]
            same = (torch.cat([sums for _, sums in received]) == buffer).view(-1, 2).all(1).tolist()
            if not all(same):
                part, _ = received[same.index(False)]
                return (
                    f"rank {rank}: '{part.name}' {list(part.box.shape)} from rank {parcel.peer} is not what that rank "
                    "has sent: its checksum differs; see to the memory and the network of both, and start again"
                )
        return None


def agree_on_result(
    traffic: TransferStats,
    messages: Sequence[Message],
    settings: str,
    checks: Checks | None,
    *,
    device: torch.device,
    deadline: Deadline,
    itemsize: int,
) -> None:
    """Return when all ranks have all that they are to have.

    Raises:
        PeerError: on all ranks, if one has not succeeded, or was called with other arguments.
    """
    rank = dist.get_rank()
    altered = None if checks is None else checks.first_altered(rank, device, deadline, traffic)
    # Each message counts once for its sender and once against its receiver.
    flow = sum((1 if one.source == rank else -1) * _weight(one, itemsize) for one in messages)
    own = [int(altered is not None), zlib.crc32(settings.encode()), flow % _MODULUS]
    states = _gathered(torch.tensor(own, dtype=torch.int64, device=device), deadline).tolist()
    if altered is not None:
        raise PeerError(altered)
    for other, (failed, said, _) in enumerate(states):
        if failed:
            raise PeerError(f"rank {other} has not got its parameters as they were sent; see its own message")
        if said != states[0][1]:
            raise PeerError(
                f"rank {other} moves parameters with other settings (dtype, eta, checksum) than rank 0; "
                "all ranks must make the same call"
            )
    if sum(flow for *_, flow in states) % _MODULUS:
        raise PeerError(f"rank {rank}: the ranks follow different plans; all must name the same model and layouts")


def _gathered(own: Tensor, deadline: Deadline) -> Tensor:
    everyone = own.new_empty(dist.get_world_size(), own.numel())
    try:
        work = all_gather_single(everyone.view(-1), own, async_op=True)
        deadline.wait(work, OTHERS_SPEAK)
    except RuntimeError as error:
        raise PeerError(
            f"rank {dist.get_rank()} waited {deadline.passed_s:.1f} s for all ranks to end the reallocation: one is "
            "missing, stuck or gone; see the messages of the others, or raise the timeout"
        ) from error
    return everyone


def _weight(message: Message, itemsize: int) -> int:
    text = f"{message.source} {message.target} {message.place} {message.numel * itemsize}"
    return zlib.crc32(text.encode())


def _parcel(source: int, target: int, *, is_sent: bool = True) -> Endpoint:
    return Endpoint(
        Message(0, source, target, (TensorSlice("its checksums", Box((), ())),)), is_sent, (), in_place=False
    )


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


_AT_ONCE = 1 << 18


SCRATCH_BYTES = 4 * 8 * _AT_ONCE
"""Memory that a fingerprint takes at the most, beside a copy of what is not contiguous."""


def checksum(values: Tensor) -> Tensor:
    """The sum of all bit patterns, and their sum weighted by position, modulo 2**64.

    The first changes with any altered element, the second with two that have changed places.

    Args:
        values: any shape and dtype of up to 8 bytes.

    Returns:
        `[2]`, int64, on the device of the values. The same values give the same numbers on every device.
    """
    flat = values.detach().contiguous().view(-1)
    bits = flat.view(_BITS[flat.element_size()])
    sums = torch.zeros(2, dtype=torch.int64, device=values.device)
    for start in range(0, bits.numel(), _AT_ONCE):
        some = bits[start : start + _AT_ONCE].long()
        sums[0] += some.sum()
        sums[1] += some.mul_(torch.arange(start + 1, start + 1 + some.numel(), device=some.device)).sum()
    return sums
