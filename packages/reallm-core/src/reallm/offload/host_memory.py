"""Where offloaded tensors are kept: in pinned memory for a GPU, in a memory-mapped file for a CPU."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from reallm.errors import DataError

PAGE = mmap.ALLOCATIONGRANULARITY


class HostMemory(Protocol):
    """Buffers of fixed sizes."""

    @property
    def slots(self) -> Sequence[Tensor]:
        """The buffers, uint8 [n] each."""

    def flush(self) -> None:
        """Move what was written to the slots out of RAM, where that is possible."""

    def prefetch(self, index: int) -> None:
        """A hint that a slot is read soon."""

    def evict(self, index: int) -> None:
        """A hint that a slot is not read soon."""


class PinnedMemory:
    """Page-locked RAM, which the GPU reads and writes by itself while the CPU does other things.

    torch caches it for the next time, and rounds the size of each slot up to a power of two.

    Raises:
        DataError: the host has no room.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        try:
            self.slots: Sequence[Tensor] = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for size in sizes]
        except RuntimeError as error:
            raise DataError(
                f"cannot offload {sum(sizes) / 2**30:.2f} GiB to pinned memory: {str(error).splitlines()[0]}; offload "
                "less, or use a machine with more memory"
            ) from error

    def flush(self) -> None:
        """Nothing: pinned memory stays in RAM."""

    def prefetch(self, index: int) -> None:
        """Nothing: it is in RAM."""

    def evict(self, index: int) -> None:
        """Nothing: it stays in RAM."""


class MappedFile:
    """A file without a name, which is gone with the process, however it ends; the kernel caches of it what it can.

    Args:
        sizes: of the slots in bytes.
        folder: where the file is made; None: where temporary files are (`TMPDIR`).

    Raises:
        DataError: the folder has no room or cannot be written.
    """

    def __init__(self, sizes: Sequence[int], folder: str | os.PathLike[str] | None = None) -> None:
        self._bounds = [0]
        for size in sizes:
            self._bounds.append(self._bounds[-1] + -(-size // PAGE) * PAGE)
        total = max(self._bounds[-1], PAGE)
        where = folder or tempfile.gettempdir()
        try:
            with tempfile.TemporaryFile(dir=where) as file:
                os.posix_fallocate(file.fileno(), 0, total)  # a full disk is an error here, not a signal later
                self._map = mmap.mmap(file.fileno(), total)
        except OSError as error:
            raise DataError(
                f"cannot offload {total / 2**30:.2f} GiB to {where}: {error.strerror}; set TMPDIR to a disk with room"
            ) from error
        whole = torch.frombuffer(self._map, dtype=torch.uint8)
        self.slots: Sequence[Tensor] = [
            whole[start : start + size] for start, size in zip(self._bounds, sizes, strict=False)
        ]

    def flush(self) -> None:
        """Write all slots to the disk: clean pages can be dropped from RAM."""
        self._map.flush()
        for index in range(len(self.slots)):
            self.evict(index)

    def prefetch(self, index: int) -> None:
        """Have the kernel read a slot ahead."""
        self._advise(index, mmap.MADV_WILLNEED)

    def evict(self, index: int) -> None:
        """Take a slot's pages out of this process' memory; they stay in the file."""
        self._advise(index, mmap.MADV_DONTNEED)

    def _advise(self, index: int, advice: int) -> None:
        start, stop = self._bounds[index : index + 2]
        if stop > start:
            self._map.madvise(advice, start, stop - start)


def host_memory(device: torch.device, sizes: Sequence[int]) -> HostMemory:
    """Slots of these sizes for tensors of a device."""
    return PinnedMemory(sizes) if device.type == "cuda" else MappedFile(sizes)
