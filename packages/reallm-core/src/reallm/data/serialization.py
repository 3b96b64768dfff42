"""Saves a `NamedArray` as one safetensors file, and loads it. Nothing in such a file is ever executed.

Arrays are stored under their dotted names. The header's metadata holds one JSON text under `reallm.namedarray`: the
format's version, the kind of every field in order (torch, numpy, none, empty: nested without fields), and the metadata.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load as load_tensors

from reallm.atomic_files import atomic_write
from reallm.data.array import Array, describe
from reallm.data.namedarray import NamedArray, Value, flatten, from_flattened
from reallm.errors import DataError
from reallm.foreign_files import parse_json, reading
from reallm.machine_errors import raise_shortage
from reallm.tensor_files import DTYPE_NAMES, file_pieces, save_tensors

HEADER = "reallm.namedarray"
VERSION = 1


def save(batch: NamedArray, path: str | os.PathLike[str]) -> None:
    """Write `batch` to `path` atomically.

    Nesting, None fields, the kinds (torch, numpy), dtypes and metadata are kept; devices and gradients are not.

    Raises:
        DataError: the format lacks a dtype, or the file cannot be written; names the field or path.
    """
    tensors, header = _encode(batch)
    with atomic_write(path) as temporary:
        save_tensors(tensors, temporary, header)


def to_bytes(batch: NamedArray) -> bytes:
    """The bytes of the file that `save` writes; the same for equal batches.

    Raises:
        DataError: the format lacks a dtype; names the field.
    """
    return b"".join(file_pieces(*_encode(batch)))


def from_bytes(data: bytes) -> NamedArray:
    """The `NamedArray` of which `to_bytes` made these bytes, on the CPU.

    Raises:
        DataError: they are damaged.
    """
    with reading("the bytes of a NamedArray", error=DataError, problem="are damaged"):
        n = int.from_bytes(data[:8], "little")
        header = parse_json(data[8 : 8 + n])["__metadata__"][HEADER]
        return _decode(parse_json(header), load_tensors(data))


def load(path: str | os.PathLike[str]) -> NamedArray:
    """The `NamedArray` that `save` wrote to `path`, on the CPU.

    Raises:
        DataError: the file is missing, damaged, or not such a file; names the path.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    with (
        reading(path, error=DataError, problem="is not a readable safetensors file"),
        safetensors.safe_open(path, framework="pt") as file,
    ):
        header = (file.metadata() or {}).get(HEADER)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    if header is None:
        raise DataError(f"{path}: a safetensors file, but not of a NamedArray (no '{HEADER}' in its metadata)")
    with reading(path, error=DataError, problem="has a damaged header"):
        return _decode(parse_json(header), tensors)


def _encode(batch: NamedArray) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    fields = [[name, _kind(value)] for name, value in flatten(batch)]
    tensors = {name: _tensor(name, value) for name, value in flatten(batch) if isinstance(value, Array)}
    header = {"version": VERSION, "fields": fields, "metadata": batch.metadata}
    return tensors, {HEADER: json.dumps(header, default=dict)}  # of read-only mappings


def _decode(header: dict[str, Any], tensors: dict[str, torch.Tensor]) -> NamedArray:
    if header["version"] != VERSION:
        raise ValueError(f"format version {header['version']!r}; this reallm reads version {VERSION}")
    items: list[tuple[str, Value]] = []
    for name, kind in header["fields"]:
        if kind in ("torch", "numpy") and name not in tensors:
            raise ValueError(f"field '{name}' has no array")
        if kind in ("torch", "numpy"):
            tensor = tensors.pop(name)
            items.append((name, tensor.numpy() if kind == "numpy" else tensor))
        elif kind in ("none", "empty"):
            items.append((name, None if kind == "none" else NamedArray()))
        else:
            raise ValueError(f"field '{name}' is of unknown kind {kind!r}")
    if tensors:
        raise ValueError(f"field '{next(iter(tensors))}' is not listed")
    try:
        return from_flattened(items, header["metadata"])
    except DataError as error:  # it does not name the file
        raise ValueError(str(error)) from error


def _kind(value: Value) -> str:
    if isinstance(value, NamedArray):
        return "empty"
    return "none" if value is None else "torch" if isinstance(value, torch.Tensor) else "numpy"


def _tensor(name: str, array: Array) -> torch.Tensor:
    """A contiguous tensor in host memory; arrays, which may be read-only, are copied."""
    try:
        if isinstance(array, np.ndarray):
            tensor = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
        else:
            tensor = array.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    except (RuntimeError, TypeError, ValueError) as error:
        raise_shortage(error)
        raise DataError(f"field '{name}': {describe(array)} cannot be saved") from error
    if tensor.dtype not in DTYPE_NAMES:
        raise DataError(f"field '{name}': {describe(array)} cannot be saved")
    return tensor
