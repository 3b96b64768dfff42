"""Encoded rows of a source, in its order, in flat arrays: in memory, or in the files of a folder that are mapped.

A folder has one file of raw values for each array, and `store.json`, which says what they are and has checksums.
"""

from __future__ import annotations

import json
import zlib
from array import array
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reallm.data.tokenization.encoder import EncodedBatch
from reallm.data.tokenization.sequences import FlatSequences, SequenceBuilder
from reallm.errors import DataError
from reallm.foreign_files import parse_json, read_bytes, reading

IDS = "ids"
"""The column with the ids of the samples, as UTF-8 bytes."""
HEADER = "store.json"
VERSION = 1

_BLOCK = 1 << 16
_MAX_BLOCKS = 512


@dataclass(frozen=True)
class TokenStore:
    """The samples that were made of the rows of a source, in the order of the rows.

    Args:
        columns: field -> its values in each sample; and `IDS`.
        row_of_sample: int64 [n], the row that each sample was made of, counted from 0.
        remark_of_row: int32 [R], for each row an index into `remarks`.
        remarks: the different groups of remarks about a row; the first is empty.
        folder: the folder whose files are mapped; None: everything is in memory.
    """

    columns: Mapping[str, FlatSequences]
    row_of_sample: np.ndarray
    remark_of_row: np.ndarray
    remarks: tuple[tuple[str, ...], ...]
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.row_of_sample)

    def field(self, name: str, i: int) -> np.ndarray:
        """A field of sample `i`, [L]; a view, not to be written to."""
        return self.columns[name][i]

    @property
    def n_rows(self) -> int:
        """Number of rows of the source, with those that were dropped."""
        return len(self.remark_of_row)

    def __reduce__(self) -> Any:
        if self.folder is not None:  # the files are mapped again, instead of copied into the pickle
            return open_store, (self.folder,)
        return TokenStore, (self.columns, self.row_of_sample, self.remark_of_row, self.remarks)


class StoreBuilder:
    """Collects encoded batches, in memory or in the files of a folder; a context.

    Args:
        folder: an empty folder; None: keep everything in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._files = ExitStack()
        self._columns: dict[str, SequenceBuilder] = {}
        self._row_of_sample = array("q")
        self._remark_of_row = array("i")
        self._remarks: dict[tuple[str, ...], int] = {(): 0}

    def __enter__(self) -> StoreBuilder:
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def append(self, batch: EncodedBatch) -> None:
        """Append the rows that follow those before."""
        n_rows = len(self._remark_of_row)
        self._row_of_sample.frombytes((np.flatnonzero(batch.is_kept) + n_rows).astype(np.int64).tobytes())
        self._remark_of_row.extend(self._remarks.setdefault(group, len(self._remarks)) for group in batch.remarks)
        ids = [name.encode() for name in batch.ids]
        lengths = np.array([len(name) for name in ids], np.int64)
        self._column(IDS, np.dtype(np.uint8)).extend(np.frombuffer(b"".join(ids), np.uint8), lengths)
        for name, (values, lengths) in batch.fields.items():
            self._column(name, values.dtype).extend(values, lengths)

    def build(self) -> TokenStore:
        """The store of all batches, which are in memory; nothing can be appended afterwards."""
        return TokenStore(
            {name: column.build() for name, column in self._columns.items()},
            *self._about_rows(),
            tuple(self._remarks),
        )

    def finish(self) -> None:
        """Write what is not yet in the folder; nothing can be appended afterwards."""
        assert self._folder is not None
        self._files.close()
        row_of_sample, remark_of_row = self._about_rows()
        arrays = {f"{name}.offsets": column.offsets for name, column in self._columns.items()}
        arrays |= {"row_of_sample": row_of_sample, "remark_of_row": remark_of_row}
        dtypes = {f"{name}.values": column.dtype for name, column in self._columns.items()}
        for name, values in arrays.items():
            values.tofile(self._folder / name)
            dtypes[name] = values.dtype
        header = {
            "version": VERSION,
            "columns": list(self._columns),
            "arrays": {name: _about(self._folder / name, dtype) for name, dtype in dtypes.items()},
            "remarks": list(self._remarks),
        }
        (self._folder / HEADER).write_text(json.dumps(header), encoding="utf-8")

    def _column(self, name: str, dtype: np.dtype) -> SequenceBuilder:
        if name not in self._columns:
            file = None
            if self._folder is not None:
                file = self._files.enter_context((self._folder / f"{name}.values").open("wb"))
            self._columns[name] = SequenceBuilder(dtype, file)
        return self._columns[name]

    def _about_rows(self) -> tuple[np.ndarray, np.ndarray]:
        return np.frombuffer(self._row_of_sample, np.int64), np.frombuffer(self._remark_of_row, np.int32)


def open_store(folder: Path) -> TokenStore:
    """Map the files that `StoreBuilder.finish` wrote. Their sizes and checksums are checked.

    Raises:
        DataError: a file is missing or damaged; names it.
    """
    with reading(folder, error=DataError, problem="is damaged"):
        header = parse_json(read_bytes(folder / HEADER))
        if header["version"] != VERSION:
            raise DataError(f"{folder}: written by another version of reallm")
        arrays = {name: _mapped(folder / name, about) for name, about in header["arrays"].items()}
        columns = {
            name: FlatSequences(arrays[f"{name}.values"], arrays[f"{name}.offsets"]) for name in header["columns"]
        }
        remarks = tuple(map(tuple, header["remarks"]))
        return TokenStore(columns, arrays["row_of_sample"], arrays["remark_of_row"], remarks, folder)


def _mapped(path: Path, about: Mapping[str, Any]) -> np.ndarray:
    """The values of a file; they may be changed, but changes are not written to it."""
    dtype = np.dtype(about["dtype"])
    if about != _about(path, dtype):
        raise ValueError(f"{path.name} is not what was written")
    if not about["size"]:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype, mode="c").view(np.ndarray)


def _about(path: Path, dtype: np.dtype) -> dict[str, Any]:
    """What `store.json` says about a file: dtype, size in bytes and checksum.

    The checksum is over at most `_MAX_BLOCKS` blocks, evenly spaced with the first and the last: reading gigabytes
    would take longer than anything else.
    """
    size, crc = path.stat().st_size, 0
    n_blocks = -(-size // _BLOCK)
    with path.open("rb") as file:
        for block in sorted(set(np.linspace(0, n_blocks - 1, min(n_blocks, _MAX_BLOCKS)).round().astype(int).tolist())):
            file.seek(block * _BLOCK)
            crc = zlib.crc32(file.read(_BLOCK), crc)
    return {"dtype": dtype.str, "size": size, "crc32": crc}
