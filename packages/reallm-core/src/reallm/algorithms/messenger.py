"""`Messenger`: sends tensors from rank to rank, with errors that say in one line who waited for what."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from reallm.errors import PeerError
from reallm.launch.job import Job

_TIMED_OUT = ("timed out", "timeout")


@dataclass(frozen=True)
class _Sent:
    """A message that may still be on its way."""

    work: dist.Work
    tensor: torch.Tensor
    target: int
    what: str


class Messenger:
    """Sends tensors in host memory from rank to rank. Sending does not wait.

    Args:
        rank: this rank.
        job: the processes of the run, for errors that say what another one is doing; None: they do not say it.
    """

    def __init__(self, rank: int, job: Job | None = None) -> None:
        self.rank, self._job = rank, job or Job()
        self._sent: list[_Sent] = []
        self._n_earlier = 0

    def send(self, tensor: torch.Tensor, target: int, tag: int, what: str) -> None:
        """Start to send a tensor.

        Args:
            tensor: the tensor.
            target: the rank that receives it.
            tag: messages from one rank to another with the same tag are received in the order in which they were sent.
            what: what it is, such as `'input_ids' of 'actor_gen'`.
        """
        work = dist.isend(tensor, target, tag=tag)
        assert work is not None
        self._sent.append(_Sent(work, tensor, target, what))

    def receive(self, tensor: torch.Tensor, source: int, tag: int, awaited: str) -> None:
        """Wait for a tensor of another rank.

        Args:
            tensor: is written to.
            source: the rank that sends it.
            tag: as in `send`.
            awaited: what this rank waits for, such as `in call 'ref_inf' for 'input_ids' of 'actor_gen'`.

        Raises:
            PeerError: it has not been sent in time, or the rank has ended; names the rank and what it should send.
        """
        with self._waiting(f"{awaited} from rank {source}", source):
            dist.recv(tensor, source, tag=tag)

    def finish(self) -> None:
        """Wait until all that was sent is received.

        Raises:
            PeerError: a rank has not received it in time, or has ended.
        """
        self._finish(len(self._sent))

    def finish_earlier(self) -> None:
        """Wait until all is received that was sent before the last call of this method.

        Raises:
            PeerError: a rank has not received it in time, or has ended.
        """
        self._finish(self._n_earlier)
        self._n_earlier = len(self._sent)

    def _finish(self, n: int) -> None:
        """Wait for the first `n` messages."""
        for one in self._sent[:n]:
            with self._waiting(f"for rank {one.target} to take {one.what}", one.target):
                one.work.wait()
        del self._sent[:n]
        self._n_earlier = 0

    @contextmanager
    def _waiting(self, awaited: str, peer: int) -> Iterator[None]:
        """Context that turns errors of the backend into one line that says what this rank waited for."""
        start = time.monotonic()
        try:
            yield
        except RuntimeError as error:
            seconds = time.monotonic() - start
            who = f"rank {peer}" if self._job.store is None else f"rank {peer} ({self._job.describe_process(peer)})"
            if any(words in str(error).lower() for words in _TIMED_OUT):
                raise PeerError(
                    f"rank {self.rank} waited {seconds:.0f} s {awaited}; see what {who} is doing, or raise "
                    "parallel.timeout_s if a call takes longer"
                ) from error
            raise PeerError(
                f"rank {self.rank} lost rank {peer} after it had waited {seconds:.0f} s {awaited}; see whether {who} "
                "has ended"
            ) from error
