"""The bytes of safetensors files: a header of JSON, and those of the tensors in the order of their dtypes and names.

They are the same as safetensors itself writes. Its own writer makes a temporary file that only its owner may read, and
nothing of what it writes can be seen on the way, as a checksum needs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

DTYPE_NAMES: Mapping[torch.dtype, str] = {
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float64: "F64",
    torch.complex64: "C64",
    torch.float32: "F32",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.float8_e8m0fnu: "F8_E8M0",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Dtypes that can be written, with their names in the format, in the order of files, which keeps tensors aligned."""

_ALIGNMENT = 8
_ORDER = {dtype: number for number, dtype in enumerate(DTYPE_NAMES)}


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write tensors as one safetensors file; see `file_pieces`.

    Raises:
        OSError: the file cannot be written.
    """
    with path.open("wb") as file:
        file.writelines(file_pieces(tensors, metadata))


def file_pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> list[memoryview]:
    """The content of a safetensors file in order, as views of the memory of the tensors.

    Args:
        tensors: contiguous tensors on the CPU, of dtypes in `DTYPE_NAMES`.
        metadata: texts for the header.
    """
    names = sorted(tensors, key=lambda name: (_ORDER[tensors[name].dtype], name))
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in names:
        tensor, start = tensors[name], end
        end += tensor.nbytes
        dtype, shape = DTYPE_NAMES[tensor.dtype], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    start_of_file = len(text).to_bytes(8, "little") + text
    return [memoryview(start_of_file), *(bytes_of(tensors[name]) for name in names)]


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    assert tensor.is_contiguous()
    if not tensor.numel():  # it may have strides that `view` does not take
        return memoryview(b"")
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data
