"""What a reallocation really sends and holds: bytes counted where they enter the network, memory where it is made."""

from __future__ import annotations

import random
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reallm.errors import ConfigError
from reallm.model.config import ReaLModelConfig
from reallm.model.parameters import parameter_infos
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.parallel.sharding import local_boxes
from reallm.reallocation.execute import ReallocationResult, execute
from reallm.reallocation.messages import Limits
from reallm.reallocation.plan import plan
from tests.helpers.ranks import on_ranks

CONFIG = ReaLModelConfig(
    n_layers=8, hidden_size=64, n_q_heads=8, n_kv_heads=2, head_dim=8, intermediate_size=96, vocab_size=203,
    max_positions=64, tied_embeddings=True, q_bias=True,
)  # fmt: skip
N_RANKS = 8
MEASURED = (0, 5)
"""Ranks whose memory is watched; what torch imports for that takes a process seconds."""
N_PAIRS = 30
SMALL = Limits(small_bytes=256, message_bytes=2048, batch_bytes=4096, batch_messages=8, depth=2)


@dataclass(frozen=True)
class Case:
    """A move."""

    source: Layout
    target: Layout
    dtype: torch.dtype
    eta: float
    is_into: bool
    limits: Limits


@dataclass(frozen=True)
class Seen:
    """What one rank saw of it."""

    sent: int
    received: int
    messages: int
    peak: int | None
    """Only of ranks whose memory was watched."""
    moved: ReallocationResult


def a_layout(draw: random.Random) -> Layout:
    """Any that the model fits, on any ranks in any order; those of FSDP ascend."""
    while True:
        dp, pp, tp = (draw.choice((1, 1, 2, 3, 4, 8)) for _ in range(3))
        fsdp = dp > 1 and draw.random() < 0.5
        if dp * pp * tp > N_RANKS:
            continue
        ranks = draw.sample(range(N_RANKS), dp * pp * tp)
        layout = Layout(dp, pp, tp, fsdp, tuple(sorted(ranks) if fsdp or draw.random() < 0.5 else ranks))
        try:
            local_boxes(CONFIG, layout, 0)
        except ConfigError:
            continue
        return layout


def cases() -> list[Case]:
    draw = random.Random(0)
    return [
        Case(
            a_layout(draw),
            a_layout(draw),
            draw.choice([torch.float32, torch.float32, torch.bfloat16, torch.float64]),
            draw.choice([1.0, 1.0, 1.0, 0.3]),
            draw.random() < 0.5,
            draw.choice([Limits(), SMALL]),
        )
        for _ in range(N_PAIRS)
    ]


@cache
def whole(name: str, shape: tuple[int, ...], salt: int) -> Tensor:
    """Numbers of which few are equal."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {salt}".encode()))
    return torch.randint(-(1 << 20), 1 << 20, shape, generator=generator).float()


class Counted:
    """Bytes that go through `torch.distributed`, whoever sends them."""

    def __init__(self) -> None:
        self.sent = self.received = self.messages = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        send, receive = dist.isend, dist.irecv

        def isend(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.sent += tensor.nbytes
            self.messages += 1
            return send(tensor, *args, **kwargs)

        def irecv(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.received += tensor.nbytes
            return receive(tensor, *args, **kwargs)

        dist.isend = dist.distributed_c10d.isend = isend
        dist.irecv = dist.distributed_c10d.irecv = irecv
        try:
            yield
        finally:
            dist.isend = dist.distributed_c10d.isend = send
            dist.irecv = dist.distributed_c10d.irecv = receive


class Allocated(TorchDispatchMode):
    """Memory of tensors that are made within it and are still there: now, and at the most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {one.untyped_storage().data_ptr() for one in args if isinstance(one, Tensor)}
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self._known | given:
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        self._known.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, place, size)

    def _gone(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


def seen_by(rank: int) -> list[Seen]:
    torch.set_num_threads(1)
    found = []
    for case in cases():
        held, wanted = local_boxes(CONFIG, case.source, rank), local_boxes(CONFIG, case.target, rank)
        shapes = {info.name: info.shape for info in parameter_infos(CONFIG)}
        source = {name: whole(name, shapes[name], 0)[box.slices].contiguous() for name, box in held.items()}
        there = {name: whole(name, shapes[name], 1)[box.slices].to(case.dtype) for name, box in wanted.items()}
        into = {name: tensor.clone() for name, tensor in there.items()} if case.eta != 1.0 or case.is_into else None
        before = {name: tensor.clone() for name, tensor in source.items()}
        counted, allocated = Counted(), Allocated() if rank in MEASURED else None
        with counted.counting(), allocated or nullcontext():
            moved = execute(
                plan(CONFIG, case.source, case.target),
                Mesh.of(case.target),
                source=source,
                source_boxes=held,
                target_boxes=wanted,
                source_dtype=torch.float32,
                dtype=case.dtype,
                into=into,
                eta=case.eta,
                limits=case.limits,
            )
        for name, box in wanted.items():
            expected = whole(name, shapes[name], 0)[box.slices]
            if case.eta != 1.0:
                expected = expected * case.eta + there[name].float() * (1 - case.eta)
            assert torch.equal(moved.tensors[name], expected.to(case.dtype)), (case, name)
        assert all(torch.equal(source[name], before[name]) for name in before)
        made = {name for name, tensor in moved.tensors.items() if into is None and tensor is not source.get(name)}
        peak = None if allocated is None else allocated.peak - sum(moved.tensors[name].nbytes for name in made)
        found.append(Seen(counted.sent, counted.received, counted.messages, peak, moved))
    return found


@pytest.fixture(scope="module")
def seen() -> list[list[Seen]]:
    """By case, then by rank."""
    return [list(of_ranks) for of_ranks in zip(*on_ranks(N_RANKS, seen_by, timeout_s=300), strict=True)]


def test_what_is_sent_is_what_is_missing_and_is_sent_evenly(seen):
    for case, of_ranks in zip(cases(), seen, strict=True):
        planned = plan(CONFIG, case.source, case.target)
        itemsize = min(4, case.dtype.itemsize) if case.eta == 1.0 else 4
        assert sum(one.sent for one in of_ranks) == planned.lower_bound * itemsize, case
        for rank, one in enumerate(of_ranks):
            held, wanted = local_boxes(CONFIG, case.source, rank), local_boxes(CONFIG, case.target, rank)
            here = sum((held[name] & box).numel for name, box in wanted.items() if name in held)
            assert one.received == (sum(box.numel for box in wanted.values()) - here) * itemsize, (case, rank)
            assert (one.moved.bytes_sent, one.moved.bytes_received) == (one.sent, one.received)
        assert max(one.sent for one in of_ranks) <= 1.1 * planned.min_max_sent * itemsize, case


def test_the_memory_that_is_said_is_enough_and_bounded(seen):
    n_staged = 0
    for case, of_ranks in zip(cases(), seen, strict=True):
        for one in of_ranks:
            if one.peak is not None:  # and a few numbers for the end
                assert one.peak <= one.moved.peak_bytes + 4096, case
            bound = case.limits.depth * case.limits.batch_bytes + 3 * 2 * case.limits.message_bytes
            assert one.moved.peak_bytes <= bound, case
            n_staged += one.moved.peak_bytes > 0
    assert n_staged
