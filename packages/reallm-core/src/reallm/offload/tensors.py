"""Offloading of tensors: all are moved to host memory in the background, and loaded again group by group.

A tensor stays the same object: its storage is emptied and filled again, so that optimizers, FSDP and views that share
the storage need no changes. Loading overlaps computation: `before_use(k)` waits for group `k` only, and starts to load
the next group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from reallm.offload.host_memory import HostMemory, host_memory

PREFETCHED_GROUPS = 1
"""Number of groups that are loaded ahead while a group is in use."""


class Offload:
    """Groups of tensors, such as the layers of a model, which are on their device or in host memory.

    Args:
        groups: the tensors of each group, in the order of use. A storage that several tensors share is moved once, with
            the first group that contains it.
        device: device of the tensors.
        stream: free a group again after each use; its values must not change while it is loaded.
        keep: groups that stay on the device once they are loaded, even with `stream`.

    Raises:
        DataError: the host has no room.
    """

    def __init__(
        self,
        groups: Sequence[Iterable[Tensor]],
        device: torch.device,
        *,
        stream: bool = False,
        keep: Iterable[int] = (),
    ) -> None:
        self._loading: dict[int, list[_PendingCopy]] = {}
        self._groups = _with_slots(groups)
        self._host: HostMemory = host_memory(device, [item.size for group in self._groups for item in group])
        self._copies: _Copies = _StreamCopies(device) if device.type == "cuda" else _ThreadCopies()
        self._stream, self._keep = stream, frozenset(keep)
        self._is_resident = [True] * len(self._groups)
        self._offloading = [
            self._copies.start(self._host.slots[item.slot], item.bytes()) for group in self._groups for item in group
        ]

    def __del__(self) -> None:
        for copy in (copy for copies in self._loading.values() for copy in copies):
            copy.wait()  # after an error in the middle of a pass, the copy would write to memory that has been reused

    @property
    def is_offloading(self) -> bool:
        """Whether `wait` must still be called; until then the tensors can be read, but must not change."""
        return bool(self._offloading)

    @property
    def offloaded_bytes(self) -> int:
        """Bytes of all tensors if any is in host memory, or on its way there or back; 0 if none is."""
        return 0 if self.finished else sum(item.size for group in self._groups for item in group)

    @property
    def finished(self) -> bool:
        """Whether all groups are back on their device for good."""
        return not self._offloading and not self._stream and all(self._is_resident) and not self._loading

    @property
    def resident_bytes(self) -> int:
        """Bytes of the groups that are on their device or being loaded."""
        groups = zip(self._groups, self._is_resident, strict=True)
        return sum(item.size for group, is_resident in groups if is_resident for item in group)

    def wait(self) -> None:
        """Wait until all tensors are in host memory, and free their memory on the device."""
        if not self._offloading:
            return
        self._finish_offloading()
        self._host.flush()
        for index in range(len(self._groups)):
            self._free(index)

    def before_use(self, index: int) -> None:
        """Wait until a group is on the device, and start to load the next one."""
        if self._offloading:
            return
        for following in range(index, min(index + PREFETCHED_GROUPS + 1, len(self._groups))):
            self._start_loading(following)
        for copy in self._loading.pop(index, []):
            copy.wait()

    def start_reload(self) -> None:
        """Start to load all groups in the background; each use waits for its own.

        Raises:
            RuntimeError: the device has no room; what is loaded stays loaded, and the rest can be loaded later.
        """
        if not self._offloading and not self._stream:
            for index in range(len(self._groups)):
                self._start_loading(index)

    def after_use(self, index: int) -> None:
        """Free a group again, if groups are streamed."""
        if self._stream and index not in self._keep and not self._offloading and index not in self._loading:
            self._free(index)

    def reload(self) -> None:
        """Load all groups, for good.

        Raises:
            RuntimeError: the device has no room; loaded groups stay loaded, and the rest can be loaded later.
        """
        self._finish_offloading()
        for index in range(len(self._groups)):
            self.before_use(index)
        self._stream = False

    def _finish_offloading(self) -> None:
        for copy in self._offloading:
            copy.wait()
        self._offloading = []

    def _start_loading(self, index: int) -> None:
        if self._is_resident[index]:
            return
        group = self._groups[index]
        try:
            for item in group:
                item.storage.resize_(item.size)
        except RuntimeError:  # no room for the whole group: load none of it, or the next use would read garbage
            for item in group:
                item.storage.resize_(0)
            raise
        self._is_resident[index] = True
        self._loading[index] = [self._copies.start(item.bytes(), self._host.slots[item.slot]) for item in group]
        for item in self._groups[index + 1] if index + 1 < len(self._groups) else ():
            self._host.prefetch(item.slot)

    def _free(self, index: int) -> None:
        for item in self._groups[index]:
            item.free()
            self._host.evict(item.slot)
        self._is_resident[index] = False


@dataclass(eq=False)
class _OffloadedStorage:
    """A storage, and the slot of host memory for its bytes."""

    slot: int
    storage: torch.UntypedStorage
    size: int
    """Size in bytes."""
    mapped: Tensor | None = None
    """The tensor, if its storage belongs to a mapped checkpoint and cannot be resized: it gets another storage."""

    def bytes(self) -> Tensor:
        """The storage's bytes, uint8 [size], not a copy."""
        if self.mapped is not None:
            return self.mapped.detach().contiguous().flatten().view(torch.uint8)
        return torch.empty(0, dtype=torch.uint8, device=self.storage.device).set_(self.storage)

    def free(self) -> None:
        """Free the storage's memory on the device."""
        if self.mapped is not None:
            self.mapped.data = torch.empty_like(self.mapped, memory_format=torch.contiguous_format)
            self.storage, self.mapped = self.mapped.untyped_storage(), None
        self.storage.resize_(0)


def _with_slots(groups: Sequence[Iterable[Tensor]]) -> list[list[_OffloadedStorage]]:
    """The storages of each group, each storage once, with slots numbered from 0."""
    seen: set[int] = set()
    numbered: list[list[_OffloadedStorage]] = []
    n_slots = 0
    for group in groups:
        numbered.append([])
        for tensor in group:
            storage = tensor.untyped_storage()
            if storage.resizable():
                if storage._cdata in seen:
                    continue
                seen.add(storage._cdata)
                item = _OffloadedStorage(n_slots, storage, storage.nbytes())
            else:
                item = _OffloadedStorage(n_slots, storage, tensor.nbytes, tensor)
            numbered[-1].append(item)
            n_slots += 1
    return numbered


class _PendingCopy(Protocol):
    def wait(self) -> None:
        """Return when the copy is done, or when all work queued later will run after it."""


class _Copies(Protocol):
    """Runs copies in the background, one after another."""

    def start(self, target: Tensor, source: Tensor) -> _PendingCopy: ...


class _ThreadCopies:
    """Runs copies in a thread: copying releases Python's global interpreter lock."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="offload")

    def start(self, target: Tensor, source: Tensor) -> _PendingCopy:
        return _ThreadCopy(self._pool.submit(target.copy_, source))


class _ThreadCopy:
    def __init__(self, future: Future[Tensor]) -> None:
        self._future = future

    def wait(self) -> None:
        self._future.result()


class _StreamCopies:
    """Runs copies on a CUDA stream that waits for the stream that uses the tensors, and vice versa.

    Kernels queued on the using stream may still write a tensor that is offloaded, or read memory that is assigned to a
    loaded tensor. Since both streams wait for each other, and memory is allocated and freed on the using stream,
    `record_stream` is not needed.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    def start(self, target: Tensor, source: Tensor) -> _PendingCopy:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            event = torch.cuda.Event()
            event.record(self._stream)
        return _StreamCopy(event, self._device, to_host=target.device.type == "cpu")


class _StreamCopy:
    def __init__(self, event: torch.cuda.Event, device: torch.device, *, to_host: bool) -> None:
        self._event, self._device, self._to_host = event, device, to_host

    def wait(self) -> None:
        if self._to_host:  # the source is freed next, so the CPU must wait
            self._event.synchronize()
        else:
            torch.cuda.current_stream(self._device).wait_event(self._event)
