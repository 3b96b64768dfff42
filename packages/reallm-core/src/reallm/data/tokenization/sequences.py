"""Sequences of different lengths in one flat array."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

import numpy as np


@dataclass(frozen=True)
class FlatSequences:
    """Concatenated sequences; `sequences[i]` is a view of the i-th.

    Args:
        values: [T] the elements of all sequences.
        offsets: int64 [n + 1]; the i-th sequence is `values[offsets[i] : offsets[i + 1]]`.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.values[self.offsets[i] : self.offsets[i + 1]]


class SequenceBuilder:
    """Collects sequences of one dtype; their values go into a file, or into one growing buffer.

    Args:
        dtype: dtype of the values.
        file: where to write the values; None: keep them in memory.
    """

    def __init__(self, dtype: np.dtype, file: BinaryIO | None = None) -> None:
        self.dtype = dtype
        self._file = file if file is not None else BytesIO()
        self._offsets = array("q", [0])

    def extend(self, values: np.ndarray, lengths: np.ndarray) -> None:
        """Append sequences that are concatenated in `values`, [T], with their `lengths`, int64 [n]."""
        self._file.write(np.ascontiguousarray(values, self.dtype).data)
        self._offsets.frombytes((np.cumsum(lengths, dtype=np.int64) + self._offsets[-1]).tobytes())

    @property
    def offsets(self) -> np.ndarray:
        """The offsets of all sequences, int64 [n + 1]; nothing can be appended afterwards."""
        return np.frombuffer(self._offsets, np.int64)

    def build(self) -> FlatSequences:
        """The sequences that are in memory, sharing the buffer; nothing can be appended afterwards."""
        assert isinstance(self._file, BytesIO)
        return FlatSequences(np.frombuffer(self._file.getbuffer(), self.dtype), self.offsets)
