"""Tensors that leave their device's memory, all at once and in the background, and come back group by group.

A tensor stays the same object: its storage is emptied and filled again, so that optimizers, FSDP and views that share
the storage need not know. Several groups are copied back while others are computed with: `before(k)` waits for group
`k` alone, and has the next one come.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reallm.offload.host_memory import HostMemory, host_memory

AHEAD = 1
"""Groups that come while one is computed with."""


class Offload:
    """Groups of tensors, such as the layers of a model, and where each is.

    Args:
        groups: the tensors of each, in the order in which they are used. What several tensors share moves once, with
            the first group that has it.
        device: of the tensors.
        stream: let a group go again after it was used; its numbers must not change meanwhile.
        stay: groups that stay once they have come back, even with `stream`.

    Raises:
        DataError: the host has no room.
    """

    def __init__(
        self,
        groups: Sequence[Iterable[Tensor]],
        device: torch.device,
        *,
        stream: bool = False,
        stay: Iterable[int] = (),
    ) -> None:
        self._coming: dict[int, list[_Ticket]] = {}
        self._groups = _pieces(groups)
        self._host: HostMemory = host_memory(device, [piece.size for group in self._groups for piece in group])
        self._copies: _Copies = _StreamCopies(device) if device.type == "cuda" else _ThreadCopies()
        self._stream, self._stay = stream, frozenset(stay)
        self._here = [True] * len(self._groups)
        self._leaving = [
            self._copies.start(self._host.slots[piece.slot], piece.bytes()) for group in self._groups for piece in group
        ]

    def __del__(self) -> None:
        for ticket in (ticket for tickets in self._coming.values() for ticket in tickets):
            ticket.wait()  # after an error in the middle of a pass: what still comes would land in memory of others

    @property
    def is_leaving(self) -> bool:
        """Whether `wait` is still to be called; until then the tensors can be read, and must not change."""
        return bool(self._leaving)

    @property
    def is_over(self) -> bool:
        """Whether all groups are back for good."""
        return not self._leaving and not self._stream and all(self._here) and not self._coming

    @property
    def bytes_here(self) -> int:
        """Bytes of the groups that are on their device or coming."""
        groups = zip(self._groups, self._here, strict=True)
        return sum(piece.size for group, is_here in groups if is_here for piece in group)

    def wait(self) -> None:
        """Return when all tensors are in host memory and no longer on their device."""
        if not self._leaving:
            return
        self._finish_leaving()
        self._host.flush()
        for index in range(len(self._groups)):
            self._empty(index)

    def before(self, index: int) -> None:
        """Return when a group is there; the next one begins to come."""
        if self._leaving:
            return
        for coming in range(index, min(index + AHEAD + 1, len(self._groups))):
            self._start(coming)
        for ticket in self._coming.pop(index, []):
            ticket.wait()

    def after(self, index: int) -> None:
        """Let a group go that was used, if groups are streamed."""
        if self._stream and index not in self._stay and not self._leaving and index not in self._coming:
            self._empty(index)

    def reload(self) -> None:
        """Return when all groups are back, for good.

        Raises:
            RuntimeError: the device has no room; what has come stays, and the rest can come later.
        """
        self._finish_leaving()
        for index in range(len(self._groups)):
            self.before(index)
        self._stream = False

    def _finish_leaving(self) -> None:
        for ticket in self._leaving:
            ticket.wait()
        self._leaving = []

    def _start(self, index: int) -> None:
        if self._here[index]:
            return
        pieces = self._groups[index]
        try:
            for piece in pieces:
                piece.storage.resize_(piece.size)
        except RuntimeError:  # no room for all of the group: none of it comes, or the next use would read nothing
            for piece in pieces:
                piece.storage.resize_(0)
            raise
        self._here[index] = True
        self._coming[index] = [self._copies.start(piece.bytes(), self._host.slots[piece.slot]) for piece in pieces]
        for piece in self._groups[index + 1] if index + 1 < len(self._groups) else ():
            self._host.expect(piece.slot)

    def _empty(self, index: int) -> None:
        for piece in self._groups[index]:
            piece.empty()
            self._host.release(piece.slot)
        self._here[index] = False


@dataclass(eq=False)
class _Piece:
    """A storage, and the slot that holds its bytes."""

    slot: int
    storage: torch.UntypedStorage
    size: int
    """In bytes."""
    mapped: Tensor | None = None
    """The tensor, where its storage is that of a mapped checkpoint, which cannot be given back: it gets another one."""

    def bytes(self) -> Tensor:
        """Its bytes [size] uint8, not a copy."""
        if self.mapped is not None:
            return self.mapped.detach().contiguous().flatten().view(torch.uint8)
        return torch.empty(0, dtype=torch.uint8, device=self.storage.device).set_(self.storage)

    def empty(self) -> None:
        """Give the memory back."""
        if self.mapped is not None:
            self.mapped.data = torch.empty_like(self.mapped, memory_format=torch.contiguous_format)
            self.storage, self.mapped = self.mapped.untyped_storage(), None
        self.storage.resize_(0)


def _pieces(groups: Sequence[Iterable[Tensor]]) -> list[list[_Piece]]:
    seen: set[int] = set()
    found: list[list[_Piece]] = []
    n_slots = 0
    for group in groups:
        found.append([])
        for tensor in group:
            storage = tensor.untyped_storage()
            if storage.resizable():
                if storage._cdata in seen:
                    continue
                seen.add(storage._cdata)
                piece = _Piece(n_slots, storage, storage.nbytes())
            else:
                piece = _Piece(n_slots, storage, tensor.nbytes, tensor)
            found[-1].append(piece)
            n_slots += 1
    return found


class _Ticket(Protocol):
    def wait(self) -> None:
        """Return when the copy is done, or will be for all that is queued from now on."""


class _Copies(Protocol):
    """Copies in the background, one after another."""

    def start(self, target: Tensor, source: Tensor) -> _Ticket: ...


class _ThreadCopies:
    """A thread: copying releases Python's lock."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="offload")

    def start(self, target: Tensor, source: Tensor) -> _Ticket:
        return _FutureTicket(self._pool.submit(target.copy_, source))


class _FutureTicket:
    def __init__(self, future: Future[Tensor]) -> None:
        self._future = future

    def wait(self) -> None:
        self._future.result()


class _StreamCopies:
    """A stream of its own, that waits for what is queued where the tensors are used, and is waited for there.

    What is queued may still write a tensor that leaves, or read memory that is given to one that comes: it belongs to
    whoever had it before. Since both streams wait for each other, and memory is taken and given back on the one where
    tensors are used, `record_stream` is not needed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, target: Tensor, source: Tensor) -> _Ticket:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        return _EventTicket(event, self._device, is_leaving=target.device.type == "cpu")


class _EventTicket:
    def __init__(self, event: torch.cuda.Event, device: torch.device, *, is_leaving: bool) -> None:
        self._event, self._device, self._is_leaving = event, device, is_leaving

    def wait(self) -> None:
        if self._is_leaving:  # the memory is given back next, so that the CPU itself must know
            self._event.synchronize()
        else:
            torch.cuda.current_stream(self._device).wait_event(self._event)
