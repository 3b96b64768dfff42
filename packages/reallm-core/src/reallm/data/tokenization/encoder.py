"""What a dataset does with its rows, as one object that worker processes can be given. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from reallm.data.row_errors import RowError
from reallm.data.rows import Row


class EncodedRow(NamedTuple):
    """What an encoder made of a row."""

    fields: Mapping[str, np.ndarray] | None
    """Field -> array [L], of any length but 0 and of the same dtype in all rows; None drops the row."""
    remarks: tuple[str, ...] = ()
    """Phrases for the dataset's report, such as `"cut to 512 tokens"` or `"dropped: the prompt is empty"`."""


class RowEncoder(Protocol):
    """Encodes the rows of a dataset.

    It is pickled into worker processes, so it holds the tokenizer and settings, but no rows and no open files. What it
    makes of a row depends on these and the row alone. Its module should import no torch, so that workers start quickly.
    """

    def encode(self, rows: Sequence[Row]) -> list[EncodedRow]:
        """What becomes of each row, in order; a tokenizer is fastest if it gets all of them in one call.

        Raises:
            RowError: a row is wrong (`raise row.error(...)`).
            DataError: something else is, such as the tokenizer.
        """
        ...


class EncodedBatch(NamedTuple):
    """Encoded rows in a few flat arrays, which go to another process or into a store as they are.

    Args:
        is_kept: bool [R], for each row whether it was kept.
        ids: ids of the kept rows.
        fields: field -> its values in all kept rows, concatenated, and its length in each of them (int64).
        remarks: the remarks about each row.
        errors: `Row.index` and error of each wrong row, which is counted among those that were not kept.
    """

    is_kept: np.ndarray
    ids: list[str]
    fields: dict[str, tuple[np.ndarray, np.ndarray]]
    remarks: list[tuple[str, ...]]
    errors: list[tuple[int, RowError]]


def encode_batch(encoder: RowEncoder, rows: Sequence[Row]) -> EncodedBatch:
    """Encode rows, and concatenate what was made of them.

    Raises:
        DataError: something other than a row is wrong, such as the tokenizer.
    """
    errors: list[tuple[int, RowError]] = []
    try:
        encoded = encoder.encode(rows)
    except RowError:
        encoded = [_encode_or_note(encoder, row, errors) for row in rows]
    kept = [one.fields for one in encoded if one.fields is not None]
    return EncodedBatch(
        is_kept=np.array([one.fields is not None for one in encoded], np.bool_),
        ids=[row.id for row, one in zip(rows, encoded, strict=True) if one.fields is not None],
        fields={
            name: (
                np.concatenate([fields[name] for fields in kept]),
                np.array([len(fields[name]) for fields in kept], np.int64),
            )
            for name in (kept[0] if kept else ())
        },
        remarks=[one.remarks for one in encoded],
        errors=errors,
    )


def _encode_or_note(encoder: RowEncoder, row: Row, errors: list[tuple[int, RowError]]) -> EncodedRow:
    try:
        return encoder.encode([row])[0]
    except RowError as error:
        errors.append((row.index, error))
        return EncodedRow(None)
