"""Storage of offloaded tensors: pinned memory for a GPU, a memory-mapped file for a CPU."""

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
    """Storage that consists of buffers of fixed sizes, called slots."""

    @property
    def slots(self) -> Sequence[Tensor]:
        """The buffers, uint8 [n] each."""

    def flush(self) -> None:
        """Move the contents of the slots out of RAM, if possible."""

    def prefetch(self, index: int) -> None:
        """Hint that a slot will be read soon."""

    def evict(self, index: int) -> None:
        """Hint that a slot will not be read soon."""


class PinnedMemory:
    """Page-locked RAM, which the GPU reads and writes independently of the CPU.

    torch caches it for reuse, and rounds the size of each slot up to a power of two.

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
        """Do nothing: pinned memory stays in RAM."""

    def prefetch(self, index: int) -> None:
        """Do nothing: pinned memory is in RAM."""

    def evict(self, index: int) -> None:
        """Do nothing: pinned memory stays in RAM."""


class MappedFile:
    """An unnamed memory-mapped file, which disappears with the process, however it ends; the kernel caches what it can.

    Args:
        sizes: sizes of the slots in bytes.
        folder: folder in which the file is made; None: the folder of temporary files (`TMPDIR`).

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
                os.posix_fallocate(file.fileno(), 0, total)  # a full disk raises an error now, not a signal later
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
        """Write all slots to the disk, so that the kernel can drop their pages from RAM."""
        self._map.flush()
        for index in range(len(self.slots)):
            self.evict(index)

    def prefetch(self, index: int) -> None:
        """Ask the kernel to read a slot ahead."""
        self._advise(index, mmap.MADV_WILLNEED)

    def evict(self, index: int) -> None:
        """Remove a slot's pages from this process' memory; they stay in the file."""
        self._advise(index, mmap.MADV_DONTNEED)

    def _advise(self, index: int, advice: int) -> None:
        start, stop = self._bounds[index : index + 2]
        if stop > start:
            self._map.madvise(advice, start, stop - start)


def host_memory(device: torch.device, sizes: Sequence[int]) -> HostMemory:
    """Allocate slots of these sizes, in bytes, for tensors of a device."""
    return PinnedMemory(sizes) if device.type == "cuda" else MappedFile(sizes)
