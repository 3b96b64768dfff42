"""`Exchange`: brings outputs of calls from the ranks that have computed them to those that need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from reallm.algorithms.placement import Placement
from reallm.data.namedarray import NamedArray, split
from reallm.data.serialization import from_bytes, to_bytes
from reallm.errors import NonFiniteError
from reallm.specs import ModelFunctionCall


class Exchange:
    """The messages of one execution of some calls, from rank to rank.

    Sending does not wait; a rank receives what a call needs just before the call. No other rank takes part. In place of
    outputs that are not finite numbers the error is sent, so that the ranks that wait for them know.

    Args:
        placement: where calls are computed.
        calls: the calls that are executed, in order.
        rank: this rank.
        made: calls that were executed before, whose outputs are sent now. Messages of both executions differ in their
            tags, so that they may overlap.
    """

    def __init__(
        self,
        placement: Placement,
        calls: Sequence[ModelFunctionCall],
        rank: int,
        made: Sequence[ModelFunctionCall] = (),
    ) -> None:
        self._rank = rank
        self.made = made
        """The calls that were executed before."""
        self._transfers = list(enumerate(placement.transfers(calls, made), start=len(placement.transfers(made))))
        self._sending: list[tuple[Any, torch.Tensor]] = []

    def send(self, producer: str, content: NamedArray | NonFiniteError) -> None:
        """Start to send the outputs of a call, or the error in their place, to the ranks that lack them."""
        for number, one in self._transfers:
            if one.producer != producer or one.source != self._rank:
                continue
            for tag, tensor in enumerate(_message(content, one.keys)):
                self._sending.append((dist.isend(tensor, one.target, tag=2 * number + tag), tensor))

    def receive(self, consumer: str) -> tuple[dict[str, list[NamedArray]], dict[str, NonFiniteError]]:
        """What this rank lacks for a call, by the call that has written it; and errors in the place of outputs."""
        found: dict[str, list[NamedArray]] = {}
        errors: dict[str, NonFiniteError] = {}
        for number, one in self._transfers:
            if one.consumer != consumer or one.target != self._rank:
                continue
            header = torch.empty(2, dtype=torch.int64)
            dist.recv(header, one.source, tag=2 * number)
            message = torch.empty(int(header[0]), dtype=torch.uint8)
            dist.recv(message, one.source, tag=2 * number + 1)
            content = _content(header, message)
            if isinstance(content, NonFiniteError):
                errors[one.producer] = content
            else:
                found.setdefault(one.producer, []).append(content)
        return found, errors

    def finish(self) -> None:
        """Wait until all that this rank has sent is received."""
        for work, _ in self._sending:
            work.wait()
        self._sending.clear()


def broadcast(content: NamedArray | NonFiniteError, source: int) -> NamedArray:
    """The batch of one rank on all ranks of the job.

    Raises:
        NonFiniteError: it has this error instead.
    """
    header, message = _message(content, list(content) if isinstance(content, NamedArray) else [])
    dist.broadcast(header, source)
    if dist.get_rank() != source:
        message = torch.empty(int(header[0]), dtype=torch.uint8)
    dist.broadcast(message, source)
    found = _content(header, message)
    if isinstance(found, NonFiniteError):
        raise found
    return found


def _message(content: NamedArray | NonFiniteError, keys: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """The header [2], number of bytes and whether they are an error, and the bytes of some keys of a batch."""
    failed = isinstance(content, NonFiniteError)
    data = str(content).encode() if isinstance(content, NonFiniteError) else to_bytes(split(content, [keys])[0])
    return torch.tensor([len(data), failed]), torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _content(header: torch.Tensor, message: torch.Tensor) -> NamedArray | NonFiniteError:
    """What a message says."""
    data = message.numpy().tobytes()
    return NonFiniteError(data.decode()) if header[1] else from_bytes(data)
