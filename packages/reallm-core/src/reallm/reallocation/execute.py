"""Carries out a plan: this rank's parts of the parameters go where they are wanted, and those wanted here come in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.model.sharding import Box
from reallm.reallocation.messages import Limits, Message, TensorSlice, cut, in_order
from reallm.reallocation.transfer import Deadline, Endpoint, transfer
from reallm.reallocation.types import RankPlan
from reallm.reallocation.verify import SCRATCH_BYTES, Checks, agree_on_result


@dataclass(frozen=True)
class ReallocationResult:
    """What a rank has after a reallocation, and what that took."""

    tensors: dict[str, Tensor]
    """By name, in the order of `wanted`: those of `into`, or else new ones, where the part is not the one held before;
    if it is, the tensor is, too, not a copy."""
    bytes_sent: int
    bytes_received: int
    n_messages: int
    """Sent and received."""
    peak_bytes: int
    """The most memory held at a time beside the source and the result."""
    seconds: float


def execute(
    mine: RankPlan,
    *,
    source: Mapping[str, Tensor],
    held: Mapping[str, Box],
    wanted: Mapping[str, Box],
    source_dtype: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    into: Mapping[str, Tensor] | None = None,
    eta: float = 1.0,
    device: torch.device | str | None = None,
    timeout: timedelta | None = None,
    checksum: bool = False,
    limits: Limits | None = None,
) -> ReallocationResult:
    """Move parameters as planned; all ranks of the job call it, those that neither send nor receive too.

    The source is not written to. When it returns, all ranks have succeeded; when it raises on one, it raises on all
    that still run, and what `into` holds is of no use.

    Args:
        mine: this rank's share of the plan.
        source: its parts of the parameters, `held[name].shape` each, all of one dtype on all ranks.
        held: which part of the whole each of them is.
        wanted: which parts it is to have.
        source_dtype: of the sources; needed where a rank without a source gets another dtype than `dtype`.
        dtype: of the result; None: that of the sources. The narrower of both is what travels.
        into: tensors in the shape and dtype of the result that take it, as it comes in; None makes new ones.
        eta: the result is `eta * moved + (1 - eta) * into`, computed in float32 or wider. The moved values are then
            sent in the dtype of the sources, so that the result does not depend on the layouts.
        device: of the result; None: that of the source.
        timeout: for the whole call; None: the one of the process group, for each message.
        checksum: compare fingerprints of what was sent with what has arrived, in its place.
        limits: of messages and staging memory; the same on all ranks.

    Raises:
        PeerError: a rank is missing, stuck, or was called with something else; or a checksum differs. Names this rank,
            the other one and the parameter. After a rank was lost, the process group cannot be used any more.
    """
    deadline, limits = Deadline(timeout), limits or Limits()
    some = next(iter(source.values()), None)
    source_dtype = source_dtype or (some.dtype if some is not None else dtype) or torch.get_default_dtype()
    dtype = dtype or source_dtype
    device = torch.device(device or (some.device if some is not None else "cpu"))
    assert all(tensor.dtype == source_dtype for tensor in source.values()), f"sources must all be {source_dtype}"
    assert all(tuple(tensor.shape) == held[name].shape for name, tensor in source.items())
    assert eta == 1.0 or into is not None, "there is nothing to mix with"
    mixing = None if eta == 1.0 else EMA(eta, torch.promote_types(source_dtype, torch.float32))
    narrows = mixing is None and dtype.itemsize < source_dtype.itemsize
    work = _Work(source, held, wanted, dtype if narrows else source_dtype, dtype, mixing)
    checks = Checks() if checksum else None
    with torch.no_grad():
        work.allocate(device, into)
        work.check_covered(mine)
        is_distributed = dist.is_initialized()
        rank, n_ranks = (dist.get_rank(), dist.get_world_size()) if is_distributed else (0, 1)
        messages = in_order((*mine.sends, *mine.receives), n_ranks, work.wire.itemsize, limits)
        parcels = [work.parcel(message, is_sent=message.source == rank) for message in messages]

        def arrived(parcel: Endpoint, part: TensorSlice, values: Tensor, place: Tensor) -> None:
            if values is not place:
                work.put(part, values, place)
            if checks is not None:
                checks.received(parcel, part, place if work.is_plain else values)

        def meanwhile() -> None:
            if checks is not None:
                for parcel in parcels:
                    if parcel.is_sent:
                        checks.sent(parcel, work.wire)
            work.keep(mine, limits)

        traffic = transfer(
            parcels,
            wire=work.wire,
            device=device,
            limits=limits,
            deadline=deadline,
            arrived=arrived,
            meanwhile=meanwhile,
        )
        if is_distributed:
            settings = f"{source_dtype} {dtype} {eta} {checksum} {limits}"
            agree_on_result(
                traffic, messages, settings, checks, device=device, deadline=deadline, itemsize=work.wire.itemsize
            )
    # A fingerprint copies what is not contiguous, and what is not of the dtype of the way.
    checking = SCRATCH_BYTES + 2 * limits.message_bytes if checksum else 0
    return ReallocationResult(
        tensors=work.result,
        bytes_sent=traffic.bytes_sent,
        bytes_received=traffic.bytes_received,
        n_messages=traffic.n_messages,
        peak_bytes=traffic.staging_bytes + work.scratch_bytes(limits) + checking,
        seconds=deadline.passed_s,
    )


@dataclass
class _Work:
    """What a rank reads from and writes to."""

    source: Mapping[str, Tensor]
    held: Mapping[str, Box]
    wanted: Mapping[str, Box]
    wire: torch.dtype
    dtype: torch.dtype
    mixing: EMA | None
    result: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether what arrives is put into its place as it is."""
        return self.mixing is None and self.wire == self.dtype

    def allocate(self, device: torch.device, into: Mapping[str, Tensor] | None) -> None:
        """Find or make the place of the result; new ones are without values, or the source itself."""
        if into is not None:
            self.result.update({name: into[name].detach() for name in self.wanted})
            assert all(self.result[name].shape == box.shape for name, box in self.wanted.items())
            return
        for name, box in self.wanted.items():
            own = self.source.get(name)
            as_it_is = own is not None and self.mixing is None and own.dtype == self.dtype and own.device == device
            if own is not None and as_it_is and self.held[name] == box:
                self.result[name] = own
            else:
                self.result[name] = torch.empty(box.shape, dtype=self.dtype, device=device)

    def check_covered(self, mine: RankPlan) -> None:
        """Each element that is wanted comes from somewhere."""
        missing = {name: box.numel for name, box in self.wanted.items()}
        for move in (*mine.receives, *mine.keeps):
            for name in move.names:
                missing[name] -= move.box.numel
        bad = [name for name, numel in missing.items() if numel]
        assert not bad, f"the plan does not bring all of {bad[0]}"

    def parcel(self, message: Message, *, is_sent: bool) -> Endpoint:
        """A message and the places of its parts here."""
        tensors, boxes = (self.source, self.held) if is_sent else (self.result, self.wanted)
        places = tuple(tensors[part.name].detach()[part.box.within(boxes[part.name]).slices] for part in message.parts)
        plain = places[0].dtype == self.wire and (is_sent or self.mixing is None)
        return Endpoint(message, is_sent, places, plain and len(places) == 1 and places[0].is_contiguous())

    def put(self, part: TensorSlice, values: Tensor, place: Tensor) -> None:
        """Write values that have come for a part, in any dtype, into the result."""
        if self.mixing is None:
            place.copy_(values)
        else:
            self.mixing.put(values, place)

    def keep(self, mine: RankPlan, limits: Limits) -> None:
        """Copy what is here already; nothing where the source itself is the result."""
        for move in mine.keeps:
            boxes = [move.box] if self.mixing is None else cut(move.box, limits.message_bytes // self.wire.itemsize)
            for name in move.names:
                if self.result[name].data_ptr() == self.source[name].data_ptr():
                    continue  # the same memory
                for box in boxes:
                    values = self.source[name][box.within(self.held[name]).slices]
                    self.put(TensorSlice(name, box), values, self.result[name][box.within(self.wanted[name]).slices])

    def scratch_bytes(self, limits: Limits) -> int:
        """Memory that mixing takes at the most."""
        return 0 if self.mixing is None else self.mixing.scratch_bytes(limits.message_bytes // self.wire.itemsize)


@dataclass(frozen=True)
class EMA:
    """`eta * moved + (1 - eta) * there`, as ReaL's reference models follow the actor."""

    eta: float
    wide: torch.dtype
    """In which it is computed."""

    def put(self, values: Tensor, place: Tensor) -> None:
        """Mix a part of what was moved into its place.

        Two products and a sum, each rounded by itself: fused ones would round otherwise at the end of a vector
        register, so that the result depended on how a parameter is cut.
        """
        mixed = values.to(self.wide) * self.eta
        mixed += place.to(self.wide) * (1 - self.eta)
        place.copy_(mixed)

    def scratch_bytes(self, numel: int) -> int:
        """Memory that parts of so many elements take at the most: each side wide, and its product."""
        return 3 * numel * self.wide.itemsize
