"""Messages between neighbouring stages of a pipeline: planned sizes, in order, sent and received in the background.

A neighbour that is gone or stuck ends in a `PeerError` with gloo. With NCCL nothing waits on the CPU: it is torch's
watchdog that ends a rank which waits in vain for as long as the timeout of the group, and names the group.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from reallm.errors import PeerError
from reallm.parallel.mesh import Group, Mesh

MOST_UNDER_WAY = 2
"""Messages that an outbox keeps until the neighbour has taken them: one that it may be taking, and the one after it."""


@dataclass(frozen=True)
class P2PPeer:
    """Another stage of this rank's pipeline, and what is exchanged with it in one direction."""

    mesh: Mesh
    stage: int
    group: Group
    """Of the two stages, for this direction alone."""
    what: str
    """For people: hidden states or gradients."""

    @classmethod
    def to(cls, mesh: Mesh, stage: int, what: Literal["hidden states", "gradients"]) -> P2PPeer:
        """The stage before or after this rank's."""
        earlier = min(stage, mesh.here.pp)
        try:
            group = mesh.p2p_forward_group(earlier) if what == "hidden states" else mesh.p2p_backward_group(earlier)
        except RuntimeError as error:
            raise _failed(mesh, stage, "connect to", what, error) from error
        return cls(mesh, stage, group, what)

    @property
    def rank(self) -> int:
        """In the whole job."""
        return self.mesh.layout.pp_ranks(self.mesh.here)[self.stage]

    @contextmanager
    def naming(self, doing: str, micro_batch: int) -> Iterator[None]:
        """Say in errors of the network who was doing what with whom."""
        try:
            yield
        except RuntimeError as error:  # torch has no class for a closed connection or for one that took too long
            what = f"{self.what} of micro-batch {micro_batch}"
            raise _failed(self.mesh, self.stage, doing, what, error) from error


@dataclass
class SendQueue:
    """Messages to a neighbour. `send` does not wait for the neighbour, unless two are on their way already."""

    neighbour: P2PPeer
    _under_way: deque[tuple[int, list[tuple[dist.Work, Tensor]]]] = field(default_factory=deque, init=False)

    def send(self, micro_batch: int, *tensors: Tensor) -> None:
        """Hand tensors to the neighbour; they must not change until they were taken.

        Raises:
            PeerError: the neighbour has ended, or has not taken earlier ones in time.
        """
        self._wait(MOST_UNDER_WAY - 1)
        with self.neighbour.naming("send to", micro_batch):
            works = [(self._post(tensor), tensor) for tensor in tensors]
        self._under_way.append((micro_batch, works))

    def finish(self) -> None:
        """Wait until the neighbour has taken everything.

        Raises:
            PeerError: it has ended, or does not do so in time.
        """
        self._wait(0)

    def _post(self, tensor: Tensor) -> dist.Work:
        # gloo takes a message that is too short without a word; under a tag that says its length it does not
        work = dist.isend(tensor, self.neighbour.rank, group=self.neighbour.group, tag=len(tensor))
        assert work is not None
        return work

    def _wait(self, n_left: int) -> None:
        while len(self._under_way) > n_left:
            micro_batch, works = self._under_way.popleft()
            with self.neighbour.naming("send to", micro_batch):
                for work, _ in works:
                    work.wait()


@dataclass
class RecvQueue:
    """Messages from a neighbour, which come straight into memory that waits for them."""

    neighbour: P2PPeer
    _expected: dict[int, list[tuple[dist.Work, Tensor]]] = field(default_factory=dict, init=False)

    def expect(self, micro_batch: int, *buffers: Tensor) -> None:
        """Receive into these from now on; messages are expected in the order in which they are sent.

        Raises:
            PeerError: the neighbour has ended.
        """
        with self.neighbour.naming("get from", micro_batch):
            self._expected[micro_batch] = [(self._post(buffer), buffer) for buffer in buffers]

    def expects(self, micro_batch: int) -> bool:
        """Whether the message of a micro-batch is expected already."""
        return micro_batch in self._expected

    def take(self, micro_batch: int) -> list[Tensor]:
        """The buffers of a micro-batch, once they are filled.

        Raises:
            PeerError: the neighbour has ended, or does not send in time.
        """
        works = self._expected.pop(micro_batch)
        with self.neighbour.naming("get from", micro_batch):
            for work, _ in works:
                work.wait()
        return [buffer for _, buffer in works]

    def _post(self, buffer: Tensor) -> dist.Work:
        work = dist.irecv(buffer, self.neighbour.rank, group=self.neighbour.group, tag=len(buffer))
        assert work is not None
        return work


@dataclass(frozen=True)
class StageP2P:
    """All that a stage exchanges with its neighbours; None where it has none."""

    states_in: RecvQueue | None
    states_out: SendQueue | None
    grads_in: RecvQueue | None
    grads_out: SendQueue | None

    @classmethod
    def of(cls, mesh: Mesh, device: torch.device) -> StageP2P:
        """Those of this rank's stage, for tensors on a device. All stages make theirs at the same time.

        Raises:
            PeerError: a neighbour has ended, or does not come in time.
        """
        stage = mesh.here.pp
        states_in = grads_out = states_out = grads_in = None
        # with NCCL the first message of a group is also where its members connect, and wait for each other: have that
        # now, from the first stage to the last, and not in the midst of a schedule in which they expect messages early
        hello = torch.zeros(1, device=device)
        if not mesh.is_first_stage:
            states_in = RecvQueue(P2PPeer.to(mesh, stage - 1, "hidden states"))
            states_in.expect(0, hello)
            states_in.take(0)
            grads_out = SendQueue(P2PPeer.to(mesh, stage - 1, "gradients"))
            grads_out.send(0, hello)
            grads_out.finish()
        if not mesh.is_last_stage:
            states_out = SendQueue(P2PPeer.to(mesh, stage + 1, "hidden states"))
            states_out.send(0, hello)
            states_out.finish()
            grads_in = RecvQueue(P2PPeer.to(mesh, stage + 1, "gradients"))
            grads_in.expect(0, hello)
            grads_in.take(0)
        return cls(states_in, states_out, grads_in, grads_out)

    def finish(self) -> None:
        """Wait until the neighbours have taken everything."""
        for outbox in (self.states_out, self.grads_out):
            if outbox is not None:
                outbox.finish()


def _failed(mesh: Mesh, stage: int, doing: str, what: str, error: Exception) -> PeerError:
    peer, reason = mesh.layout.pp_ranks(mesh.here)[stage], " ".join(str(error).split())
    return PeerError(
        f"rank {mesh.rank} (stage {mesh.here.pp} of {mesh.layout}) could not {doing} rank {peer} (stage {stage}): "
        f"{what}; rank {peer} has ended or is stuck, see what it says ({reason[:160]})"
    )


def buffer_for(shape: tuple[int, ...] | torch.Size, like: Tensor) -> Tensor:
    """Memory for a tensor of a planned shape, of the type and on the device of another one."""
    return torch.empty(shape, dtype=like.dtype, device=like.device)
