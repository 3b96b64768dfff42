"""`Exchange`: brings outputs of calls from the ranks that have computed them to those that need them."""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence

import torch
import torch.distributed as dist

from reallm.algorithms.call_outputs import WEIGHTS_VERSIONS
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
FIRST_PART = 4096
"""Bytes of the first part of a message."""
_HEADER = struct.Struct("<q?")
"""At the beginning of the first part: the number of bytes that follow, in both parts, and whether they are an error."""


class Exchange:
    """The messages of one execution of some calls, from rank to rank.

    Sending does not wait; a rank receives what a call needs just before the call. No other rank takes part. In place of
    outputs that are not finite numbers the error is sent, so that the ranks that wait for them know. How many bytes
    outputs take is not known to ranks that have none of them, and an error may come instead: the first part of a
    message, of a fixed size, says it, and there is a second one only of what finds no room there. Of the metadata of a
    batch, what all ranks have is not sent.

    Args:
        placement: where calls are computed.
        calls: the calls that are executed, in order.
        messenger: sends and receives.
        timeline: records what is received.
        samples: the samples, as all ranks have them.
        made: calls that were executed before, whose outputs are sent now. Messages of both executions differ in their
            tags, so that they may overlap.
    """

    def __init__(
        self,
        placement: Placement,
        calls: Sequence[ModelFunctionCall],
        messenger: Messenger,
        timeline: Timeline,
        samples: NamedArray,
        made: Sequence[ModelFunctionCall] = (),
    ) -> None:
        self._messenger, self._timeline = messenger, timeline
        self.made = made
        """The calls that were executed before."""
        self._known = samples.metadata.keys() - {"seqlens", WEIGHTS_VERSIONS}
        """Items of metadata that all ranks have."""
        self._transfers = list(enumerate(placement.transfers(calls, made), start=len(placement.transfers(made))))

    def send(self, producer: str, content: NamedArray | NonFiniteError) -> None:
        """Start to send the outputs of a call, or the error in their place, to the ranks that lack them."""
        messages: dict[tuple[str, ...], list[torch.Tensor]] = {}
        for number, one in self._transfers:
            if one.producer == producer and one.source == self._messenger.rank:
                if one.keys not in messages:
                    messages[one.keys] = _message(content, one.keys, self._known)
                for part, tensor in enumerate(messages[one.keys]):
                    self._messenger.send(tensor, one.target, 2 * number + part, f"{_quoted(one)} for '{one.consumer}'")

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
        first = torch.empty(FIRST_PART, dtype=torch.uint8)
        with self._timeline.span("wait", name):
            self._messenger.receive(first, one.source, 2 * number, awaited)
        with self._timeline.span("data", name) as span:
            rest = _room_for_rest(first)
            if len(rest):
                self._messenger.receive(rest, one.source, 2 * number + 1, awaited)
            content = _content(first, rest)
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
    is_source = dist.get_rank() == source
    parts = _message(content, list(content) if isinstance(content, NamedArray) else []) if is_source else []
    first = parts[0] if is_source else torch.empty(FIRST_PART, dtype=torch.uint8)
    dist.broadcast(first, source)
    rest = parts[1] if len(parts) > 1 else _room_for_rest(first)
    if len(rest):
        dist.broadcast(rest, source)
    found = _content(first, rest)
    if isinstance(found, NonFiniteError):
        raise found
    return found


def _message(
    content: NamedArray | NonFiniteError, keys: Sequence[str], known: Collection[str] = ()
) -> list[torch.Tensor]:
    """The one or two parts of a message, uint8, with some keys of a batch, without items of metadata that are known."""
    failed = isinstance(content, NonFiniteError)
    if isinstance(content, NonFiniteError):
        data = str(content).encode()
    else:
        data = to_bytes(split(content, [keys])[0].with_metadata(**dict.fromkeys(known)))
    whole = bytearray(max(FIRST_PART, _HEADER.size + len(data)))
    _HEADER.pack_into(whole, 0, len(data), failed)
    whole[_HEADER.size : _HEADER.size + len(data)] = data
    parts = torch.frombuffer(whole, dtype=torch.uint8).split([FIRST_PART, len(whole) - FIRST_PART])
    return [part for part in parts if len(part)]


def _room_for_rest(first: torch.Tensor) -> torch.Tensor:
    """Memory for what the first part of a message has no room for, uint8; often none."""
    n, _ = _HEADER.unpack_from(first.numpy().data)
    return torch.empty(max(0, _HEADER.size + n - FIRST_PART), dtype=torch.uint8)


def _content(first: torch.Tensor, rest: torch.Tensor) -> NamedArray | NonFiniteError:
    """What a message says."""
    n, failed = _HEADER.unpack_from(first.numpy().data)
    data = b"".join([first.numpy().data, rest.numpy().data])[_HEADER.size : _HEADER.size + n]
    return NonFiniteError(data.decode()) if failed else from_bytes(data)
