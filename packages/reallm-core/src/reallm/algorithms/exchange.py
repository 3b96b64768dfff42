"""`Exchange`: brings outputs of calls from the ranks that have computed them to those that need them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist

from reallm.algorithms.messenger import Messenger
from reallm.algorithms.placement import Placement, Transfer
from reallm.algorithms.timeline import Timeline
from reallm.data.array import Array
from reallm.data.namedarray import NamedArray, flatten, split
from reallm.data.serialization import from_bytes, to_bytes
from reallm.errors import NonFiniteError
from reallm.specs import ModelFunctionCall

FLAG_TAG = 1 << 24
"""Tag of a message that says whether a call has failed; those of outputs are lower."""


class Exchange:
    """The messages of one execution of some calls, from rank to rank.

    Sending does not wait; a rank receives what a call needs just before the call. No other rank takes part. In place of
    outputs that are not finite numbers the error is sent, so that the ranks that wait for them know. How many bytes
    outputs take is not known to ranks that have none of them, and an error may come instead: 16 bytes before them say
    it.

    Args:
        placement: where calls are computed.
        calls: the calls that are executed, in order.
        messenger: sends and receives.
        timeline: records what is received.
        made: calls that were executed before, whose outputs are sent now. Messages of both executions differ in their
            tags, so that they may overlap.
    """

    def __init__(
        self,
        placement: Placement,
        calls: Sequence[ModelFunctionCall],
        messenger: Messenger,
        timeline: Timeline,
        made: Sequence[ModelFunctionCall] = (),
    ) -> None:
        self._messenger, self._timeline = messenger, timeline
        self.made = made
        """The calls that were executed before."""
        self._transfers = list(enumerate(placement.transfers(calls, made), start=len(placement.transfers(made))))

    def send(self, producer: str, content: NamedArray | NonFiniteError) -> None:
        """Start to send the outputs of a call, or the error in their place, to the ranks that lack them."""
        for number, one in self._transfers:
            if one.producer == producer and one.source == self._messenger.rank:
                for tag, tensor in enumerate(_message(content, one.keys)):
                    self._messenger.send(tensor, one.target, 2 * number + tag, f"{_quoted(one)} for '{one.consumer}'")

    def receive(self, consumer: str) -> tuple[dict[str, list[NamedArray]], dict[str, NonFiniteError]]:
        """What this rank lacks for a call, by the call that has written it; and errors in the place of outputs.

        Raises:
            PeerError: a rank has not sent it in time, or has ended; names this call, that rank and what it should send.
        """
        found: dict[str, list[NamedArray]] = {}
        errors: dict[str, NonFiniteError] = {}
        for number, one in self._transfers:
            if one.consumer != consumer or one.target != self._messenger.rank:
                continue
            content = self._received(number, one)
            if isinstance(content, NonFiniteError):
                errors[one.producer] = content
            else:
                found.setdefault(one.producer, []).append(content)
        return found, errors

    def tell(self, call: str, flag: bool, targets: Sequence[int]) -> None:
        """Tell other ranks whether a call has failed."""
        for target in targets:
            self._messenger.send(torch.tensor([flag]), target, FLAG_TAG, f"the end of '{call}'")

    def hear(self, call: str, source: int) -> bool:
        """Whether a call has failed, as a rank that has computed it tells.

        Raises:
            PeerError: it has not told in time, or has ended.
        """
        flag = torch.empty(1, dtype=torch.bool)
        with self._timeline.span("wait", call):
            self._messenger.receive(flag, source, FLAG_TAG, f"for the end of '{call}'")
        return bool(flag)

    def _received(self, number: int, one: Transfer) -> NamedArray | NonFiniteError:
        name, awaited = f"{one.producer} to {one.consumer}", f"in call '{one.consumer}' for {_quoted(one)}"
        header = torch.empty(2, dtype=torch.int64)
        with self._timeline.span("wait", name):
            self._messenger.receive(header, one.source, 2 * number, awaited)
        with self._timeline.span("data", name) as span:
            message = torch.empty(int(header[0]), dtype=torch.uint8)
            self._messenger.receive(message, one.source, 2 * number + 1, awaited)
            content = _content(header, message)
            span.bytes = n_bytes(content, one.keys) if isinstance(content, NamedArray) else 0
        return content


def _quoted(one: Transfer) -> str:
    """`'input_ids' and 'prompt_lens' of 'actor_gen'`."""
    keys = " and ".join(f"'{key}'" for key in one.keys)
    return f"{keys} of '{one.producer}'"


def n_bytes(batch: NamedArray, keys: Sequence[str]) -> int:
    """Bytes of the arrays of some keys of a batch."""
    return sum(value.nbytes for _, value in flatten(split(batch, [keys])[0]) if isinstance(value, Array))


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
