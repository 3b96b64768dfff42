"""Sequences of different lengths in one flat array."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

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
    """Collects sequences of a numpy dtype in one growing buffer, so that they are never in memory twice."""

    def __init__(self, dtype: np.dtype) -> None:
        self._dtype = dtype
        self._values = bytearray()
        self._offsets = array("q", [0])

    def extend(self, values: np.ndarray, lengths: np.ndarray) -> None:
        """Append sequences that are concatenated in `values`, [T], with their `lengths`, int64 [n]."""
        self._values += values.astype(self._dtype, copy=False).tobytes()
        self._offsets.frombytes((np.cumsum(lengths) + self._offsets[-1]).tobytes())

    def build(self) -> FlatSequences:
        """The sequences that were appended, sharing the buffer; nothing can be appended afterwards."""
        return FlatSequences(np.frombuffer(self._values, self._dtype), np.frombuffer(self._offsets, np.int64))
