"""Messages of known sizes between neighbouring pipeline stages, sent and received in order, in the background.

With gloo, a peer that has ended or is stuck leads to a `PeerError`. With NCCL nothing waits on the CPU: torch's
watchdog ends a rank whose wait exceeds the timeout of the group, and names the group.
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

from reallm.errors import PeerError, one_line
from reallm.parallel.mesh import Group, Mesh

MAX_PENDING_SENDS = 2
"""Maximum number of unreceived messages in a `SendQueue`: one that the peer may be receiving, and the next."""


@dataclass(frozen=True)
class P2PPeer:
    """A neighbouring stage of this rank's pipeline, and one direction of messages between the two."""

    mesh: Mesh
    stage: int
    """The peer's stage."""
    group: Group
    """The process group of the two ranks, for this direction only."""
    content: str
    """Content of the messages, for error messages: hidden states or gradients."""

    @classmethod
    def of(cls, mesh: Mesh, stage: int, content: Literal["hidden states", "gradients"]) -> P2PPeer:
        """Make the peer for the stage before or after this rank's, with their process group.

        Raises:
            PeerError: the peer has ended, or does not join in time.
        """
        earlier = min(stage, mesh.coordinate.pp)
        try:
            group = mesh.p2p_forward_group(earlier) if content == "hidden states" else mesh.p2p_backward_group(earlier)
        except RuntimeError as error:
            raise _peer_error(mesh, stage, "connect to", content, error) from error
        return cls(mesh, stage, group, content)

    @property
    def rank(self) -> int:
        """The peer's rank in the whole job."""
        return self.mesh.layout.pp_ranks(self.mesh.coordinate)[self.stage]

    @contextmanager
    def raising_peer_error(self, action: str, micro_batch: int) -> Iterator[None]:
        """Turn network errors in the block into a `PeerError` that names both ranks and the message."""
        try:
            yield
        except RuntimeError as error:  # torch has no class for a closed connection or for a timeout
            content = f"{self.content} of micro-batch {micro_batch}"
            raise _peer_error(self.mesh, self.stage, action, content, error) from error


@dataclass
class SendQueue:
    """Messages to a peer. `send` does not wait for the peer unless `MAX_PENDING_SENDS` messages are already pending."""

    peer: P2PPeer
    _pending: deque[tuple[int, list[tuple[dist.Work, Tensor]]]] = field(default_factory=deque, init=False)

    def send(self, micro_batch: int, *tensors: Tensor) -> None:
        """Send tensors, which must not change until they are received.

        Raises:
            PeerError: the peer has ended, or has not received earlier messages in time.
        """
        self._wait(MAX_PENDING_SENDS - 1)
        with self.peer.raising_peer_error("send to", micro_batch):
            works = [(self._isend(tensor), tensor) for tensor in tensors]
        self._pending.append((micro_batch, works))

    def wait_all(self) -> None:
        """Wait until the peer has received everything.

        Raises:
            PeerError: the peer has ended, or does not receive it in time.
        """
        self._wait(0)

    def _isend(self, tensor: Tensor) -> dist.Work:
        # gloo accepts a message that is too short without an error; using the length as the tag makes it refuse
        work = dist.isend(tensor, self.peer.rank, group=self.peer.group, tag=len(tensor))
        assert work is not None
        return work

    def _wait(self, n_left: int) -> None:
        while len(self._pending) > n_left:
            micro_batch, works = self._pending.popleft()
            with self.peer.raising_peer_error("send to", micro_batch):
                for work, _ in works:
                    work.wait()


@dataclass
class RecvQueue:
    """Messages from a peer, received directly into buffers that are posted in advance."""

    peer: P2PPeer
    _posted: dict[int, list[tuple[dist.Work, Tensor]]] = field(default_factory=dict, init=False)

    def post(self, micro_batch: int, *buffers: Tensor) -> None:
        """Start to receive into buffers; buffers must be posted in the order in which messages are sent.

        Raises:
            PeerError: the peer has ended.
        """
        with self.peer.raising_peer_error("get from", micro_batch):
            self._posted[micro_batch] = [(self._irecv(buffer), buffer) for buffer in buffers]

    def is_posted(self, micro_batch: int) -> bool:
        """Whether the buffers of a micro-batch have been posted."""
        return micro_batch in self._posted

    def wait(self, micro_batch: int) -> list[Tensor]:
        """Wait until the buffers of a micro-batch are filled, and return them.

        Raises:
            PeerError: the peer has ended, or does not send in time.
        """
        works = self._posted.pop(micro_batch)
        with self.peer.raising_peer_error("get from", micro_batch):
            for work, _ in works:
                work.wait()
        return [buffer for _, buffer in works]

    def _irecv(self, buffer: Tensor) -> dist.Work:
        work = dist.irecv(buffer, self.peer.rank, group=self.peer.group, tag=len(buffer))
        assert work is not None
        return work


@dataclass(frozen=True)
class StageP2P:
    """The message queues of this rank's stage in training; None at the ends of the pipeline."""

    recv_hidden: RecvQueue | None
    send_hidden: SendQueue | None
    recv_grad: RecvQueue | None
    send_grad: SendQueue | None

    @classmethod
    def connect(cls, mesh: Mesh, device: torch.device) -> StageP2P:
        """Connect to the neighbouring stages, for tensors on a device; all stages call it at the same time.

        Raises:
            PeerError: a neighbour has ended, or does not join in time.
        """
        stage = mesh.coordinate.pp
        recv_hidden = send_grad = send_hidden = recv_grad = None
        # With NCCL, the members of a group connect at its first message, and wait for each other then. Do that now,
        # from the first stage to the last, and not in the middle of a schedule, which posts receives early.
        hello = torch.zeros(1, device=device)
        if not mesh.is_first_stage:
            recv_hidden = RecvQueue(P2PPeer.of(mesh, stage - 1, "hidden states"))
            recv_hidden.post(0, hello)
            recv_hidden.wait(0)
            send_grad = SendQueue(P2PPeer.of(mesh, stage - 1, "gradients"))
            send_grad.send(0, hello)
            send_grad.wait_all()
        if not mesh.is_last_stage:
            send_hidden = SendQueue(P2PPeer.of(mesh, stage + 1, "hidden states"))
            send_hidden.send(0, hello)
            send_hidden.wait_all()
            recv_grad = RecvQueue(P2PPeer.of(mesh, stage + 1, "gradients"))
            recv_grad.post(0, hello)
            recv_grad.wait(0)
        return cls(recv_hidden, send_hidden, recv_grad, send_grad)

    def wait_all(self) -> None:
        """Wait until the neighbours have received everything."""
        for queue in (self.send_hidden, self.send_grad):
            if queue is not None:
                queue.wait_all()


def buffer_for(shape: tuple[int, ...] | torch.Size, like: Tensor) -> Tensor:
    """An uninitialized tensor, with the dtype and device of another one."""
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _peer_error(mesh: Mesh, stage: int, action: str, content: str, error: Exception) -> PeerError:
    peer, reason = mesh.layout.pp_ranks(mesh.coordinate)[stage], one_line(error)
    return PeerError(
        f"rank {mesh.rank} (stage {mesh.coordinate.pp} of {mesh.layout}) could not {action} rank {peer} (stage "
        f"{stage}): {content}; rank {peer} has ended or is stuck, see what it says ({reason[:160]})"
    )
