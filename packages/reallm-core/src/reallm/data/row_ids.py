"""Finds ids that are there twice, in memory of 16 bytes a row."""

from __future__ import annotations

from array import array


class RowIds:
    """The hashes of the ids of rows, with the indices of the rows."""

    def __init__(self) -> None:
        self._hashes, self._indices = array("q"), array("q")

    def add(self, row_id: str, index: int) -> None:
        """Add the id of a row."""
        self._hashes.append(hash(row_id))
        self._indices.append(index)

    def repeats(self) -> list[tuple[int, int]]:
        """The index of each row whose id an earlier row has, and the index of the first that has it, in order.

        Hashes have 64 bits, so the chance that a million rows give a pair that is none is 3e-8; compare the ids.
        """
        import numpy as np  # configurations of datasets are made without it

        hashes, indices = (np.frombuffer(values, np.int64) for values in (self._hashes, self._indices))
        order = np.argsort(hashes, kind="stable")
        is_repeat = np.zeros(len(order), np.bool_)
        is_repeat[1:] = hashes[order[1:]] == hashes[order[:-1]]
        first = np.maximum.accumulate(np.where(is_repeat, 0, np.arange(len(order))))
        found = zip(indices[order[is_repeat]].tolist(), indices[order[first[is_repeat]]].tolist(), strict=True)
        return sorted(found)
