"""Executes a plan: sends what other ranks need of this rank's tensors and writes what this rank needs into its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reallm.model.sharding import Box
from reallm.parallel.mesh import Mesh
from reallm.reallocation.group import transfer_group
from reallm.reallocation.messages import Limits, Message, TensorSlice, ordered_messages, split_box
from reallm.reallocation.plan import Plan
from reallm.reallocation.transfer import Deadline, Endpoint, TransferStats, transfer
from reallm.reallocation.types import RankPlan, Ranks
from reallm.reallocation.verify import SCRATCH_BYTES, Checksums, agree_on_result


@dataclass(frozen=True)
class ReallocationResult:
    """The tensors of a rank after a reallocation, and statistics of the reallocation."""

    tensors: dict[str, Tensor]
    """Tensors by name, in the order of `target_boxes`: those of `into`, or else new ones; but if the rank already had
    the box before, the source tensor itself, not a copy."""
    bytes_sent: int
    bytes_received: int
    n_messages: int
    """Number of messages sent and received."""
    peak_bytes: int
    """Peak memory in addition to the source and the result."""
    seconds: float


def merged(results: Iterable[ReallocationResult]) -> ReallocationResult:
    """The result of several reallocations of different parameters, one after another."""
    each = list(results)
    return ReallocationResult(
        tensors={name: tensor for one in each for name, tensor in one.tensors.items()},
        bytes_sent=sum(one.bytes_sent for one in each),
        bytes_received=sum(one.bytes_received for one in each),
        n_messages=sum(one.n_messages for one in each),
        peak_bytes=max(one.peak_bytes for one in each),
        seconds=sum(one.seconds for one in each),
    )


def execute(
    plan: Plan,
    mesh: Mesh,
    *,
    source: Mapping[str, Tensor],
    source_boxes: Mapping[str, Box],
    target_boxes: Mapping[str, Box],
    ranks: Ranks | None = None,
    source_dtype: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    into: Mapping[str, Tensor] | None = None,
    eta: float = 1.0,
    device: torch.device | str | None = None,
    checksum: bool = False,
    limits: Limits | None = None,
) -> ReallocationResult:
    """Execute this rank's share of a plan; all of `ranks` call it, other ranks of the job need not.

    Reallocations of disjoint sets of ranks run concurrently and do not wait for each other. The source is not modified.
    When it returns, all of the ranks have succeeded; when it raises on one, it raises on all that are still running,
    and the contents of `into` are unusable.

    Args:
        plan: the boxes to send, with their source and target ranks.
        mesh: makes and keeps the process group of the ranks; its timeout applies to the whole call, or, if it has none,
            the timeout of the job's process group applies to each message.
        source: this rank's tensors, `source_boxes[name].shape` each, all of one dtype on all ranks.
        source_boxes: the box of each of these tensors, in whole-tensor coordinates.
        target_boxes: the boxes that this rank needs.
        ranks: ranks that take part, ascending, including all ranks of the plan; None: the ranks of the plan.
        source_dtype: dtype of the sources; needed if a rank without a source receives another dtype than `dtype`.
        dtype: dtype of the result; None: the sources' dtype. The narrower of the two is sent.
        into: tensors in the shape and dtype of the result, which are written as messages arrive; None: new ones.
        eta: the result is `eta * source + (1 - eta) * into`, computed in float32 or wider. Values are then sent in the
            dtype of the sources, so that the result does not depend on the layouts.
        device: device of the result; None: the source's device.
        checksum: compare checksums of the values sent and the values received.
        limits: limits of messages and staging memory; the same on all ranks.

    Raises:
        PeerError: a rank is missing, stuck, or was called with other arguments; or a checksum differs. Names this rank,
            the other one and the parameter. After a rank is lost, the process group of the ranks can no longer be used;
            groups of other ranks can.
    """
    deadline, limits, ranks = Deadline(mesh.timeout), limits or Limits(), ranks or plan.ranks
    rank_plan = plan.for_rank(mesh.rank)
    first = next(iter(source.values()), None)
    source_dtype = source_dtype or (first.dtype if first is not None else dtype) or torch.get_default_dtype()
    dtype = dtype or source_dtype
    device = torch.device(device or (first.device if first is not None else "cpu"))
    assert all(tensor.dtype == source_dtype for tensor in source.values()), f"sources must all be {source_dtype}"
    assert all(tuple(tensor.shape) == source_boxes[name].shape for name, tensor in source.items())
    assert eta == 1.0 or into is not None, "eta needs tensors to average with"
    ema = None if eta == 1.0 else EMA(eta, torch.promote_types(source_dtype, torch.float32))
    narrows = ema is None and dtype.itemsize < source_dtype.itemsize
    tensors = _RankTensors(source, source_boxes, target_boxes, dtype if narrows else source_dtype, dtype, ema)
    with torch.no_grad():
        tensors.allocate(device, into)
        tensors.check_complete(rank_plan)
        if mesh.rank in ranks and len(ranks) > 1:
            settings = f"{source_dtype} {dtype} {eta} {checksum} {limits}"
            stats = _exchange(
                rank_plan,
                tensors,
                mesh,
                ranks,
                settings,
                checksum=checksum,
                device=device,
                deadline=deadline,
                limits=limits,
            )
        else:
            tensors.copy_kept(rank_plan, limits)
            stats = TransferStats()
    # A checksum copies values that are not contiguous or not in the wire dtype.
    checksum_bytes = SCRATCH_BYTES + 2 * limits.message_bytes if checksum else 0
    return ReallocationResult(
        tensors=tensors.result,
        bytes_sent=stats.bytes_sent,
        bytes_received=stats.bytes_received,
        n_messages=stats.n_messages,
        peak_bytes=stats.staging_bytes + tensors.scratch_bytes(limits) + checksum_bytes,
        seconds=deadline.elapsed_s,
    )


def _exchange(
    rank_plan: RankPlan,
    tensors: _RankTensors,
    mesh: Mesh,
    ranks: Ranks,
    settings: str,
    *,
    checksum: bool,
    device: torch.device,
    deadline: Deadline,
    limits: Limits,
) -> TransferStats:
    """Send and receive, meanwhile copy what this rank keeps, and agree with all ranks that all have succeeded."""
    rank, itemsize = mesh.rank, tensors.wire_dtype.itemsize
    messages = ordered_messages((*rank_plan.sends, *rank_plan.receives), ranks[-1] + 1, itemsize, limits)
    endpoints = [tensors.endpoint(message, is_send=message.source == rank) for message in messages]
    checksums = Checksums() if checksum else None

    def on_receive(endpoint: Endpoint, one: TensorSlice, values: Tensor, view: Tensor) -> None:
        if values is not view:
            tensors.write(values, view)
        else:
            torch.autograd.graph.increment_version(view)  # received in place, unnoticed by torch
        if checksums is not None:
            checksums.add_received(endpoint, one, view if tensors.writes_unchanged else values)

    def overlap() -> None:
        if checksums is not None:
            for endpoint in endpoints:
                if endpoint.is_send:
                    checksums.add_sent(endpoint, tensors.wire_dtype)
        tensors.copy_kept(rank_plan, limits)

    group = transfer_group(mesh, ranks, endpoints, device=device, deadline=deadline)
    stats = transfer(
        endpoints,
        group,
        wire_dtype=tensors.wire_dtype,
        device=device,
        limits=limits,
        deadline=deadline,
        on_receive=on_receive,
        overlap=overlap,
    )
    error = None
    if checksums is not None:
        error = checksums.exchange(rank, group, device=device, deadline=deadline, stats=stats)
    agree_on_result(group, messages, settings, error, itemsize=itemsize, device=device, deadline=deadline)
    return stats


@dataclass
class _RankTensors:
    """The tensors that a rank reads from and writes to."""

    source: Mapping[str, Tensor]
    source_boxes: Mapping[str, Box]
    target_boxes: Mapping[str, Box]
    wire_dtype: torch.dtype
    """Dtype in which elements are sent."""
    dtype: torch.dtype
    """Dtype of the result."""
    ema: EMA | None
    result: dict[str, Tensor] = field(default_factory=dict)

    @property
    def writes_unchanged(self) -> bool:
        """Whether received values are written bit for bit."""
        return self.ema is None and self.wire_dtype == self.dtype

    def allocate(self, device: torch.device, into: Mapping[str, Tensor] | None) -> None:
        """Take the result's tensors from `into`, or make them uninitialised, or use the source itself where it fits."""
        if into is not None:
            self.result.update({name: into[name].detach() for name in self.target_boxes})
            assert all(self.result[name].shape == box.shape for name, box in self.target_boxes.items())
            return
        for name, box in self.target_boxes.items():
            tensor = self.source.get(name)
            fits = tensor is not None and self.ema is None and tensor.dtype == self.dtype and tensor.device == device
            if tensor is not None and fits and self.source_boxes[name] == box:
                self.result[name] = tensor
            else:
                self.result[name] = torch.empty(box.shape, dtype=self.dtype, device=device)

    def check_complete(self, rank_plan: RankPlan) -> None:
        """Assert that each element of the result is received or kept."""
        missing = {name: box.numel for name, box in self.target_boxes.items()}
        for one in (*rank_plan.receives, *rank_plan.keeps):
            for name in one.names:
                missing[name] -= one.box.numel
        incomplete = [name for name, numel in missing.items() if numel]
        assert not incomplete, f"the plan does not bring all of {incomplete[0]}"

    def endpoint(self, message: Message, *, is_send: bool) -> Endpoint:
        """A message with the views of its slices in this rank's tensors."""
        tensors, boxes = (self.source, self.source_boxes) if is_send else (self.result, self.target_boxes)
        views = tuple(tensors[one.name].detach()[one.box.within(boxes[one.name]).slices] for one in message.slices)
        unchanged = views[0].dtype == self.wire_dtype and (is_send or self.ema is None)
        return Endpoint(message, is_send, views, unchanged and len(views) == 1 and views[0].is_contiguous())

    def write(self, values: Tensor, view: Tensor) -> None:
        """Write values of any dtype into a view of the result."""
        if self.ema is None:
            view.copy_(values)
        else:
            self.ema.update(view, values)

    def copy_kept(self, rank_plan: RankPlan, limits: Limits) -> None:
        """Copy the elements that this rank keeps, except where the source itself is the result."""
        for one in rank_plan.keeps:
            max_numel = limits.message_bytes // self.wire_dtype.itemsize
            boxes = [one.box] if self.ema is None else split_box(one.box, max_numel)
            for name in one.names:
                if self.result[name].data_ptr() == self.source[name].data_ptr():
                    continue  # the same memory
                for box in boxes:
                    values = self.source[name][box.within(self.source_boxes[name]).slices]
                    self.write(values, self.result[name][box.within(self.target_boxes[name]).slices])

    def scratch_bytes(self, limits: Limits) -> int:
        """Upper bound of the memory that averaging takes."""
        return 0 if self.ema is None else self.ema.scratch_bytes(limits.message_bytes // self.wire_dtype.itemsize)


@dataclass(frozen=True)
class EMA:
    """Exponential moving average, `eta * new + (1 - eta) * average`, as ReaL's reference models follow the actor."""

    eta: float
    dtype: torch.dtype
    """Dtype in which the average is computed."""

    def update(self, average: Tensor, new: Tensor) -> None:
        """Update the average in place.

        It consists of two products and a sum, each rounded separately: fused operations would round differently at the
        end of a vector register, so that the result would depend on how a parameter is cut.
        """
        updated = new.to(self.dtype) * self.eta
        updated += average.to(self.dtype) * (1 - self.eta)
        average.copy_(updated)

    def scratch_bytes(self, numel: int) -> int:
        """Maximum memory for slices of `numel` elements: both operands in the wider dtype, and one product."""
        return 3 * numel * self.dtype.itemsize
