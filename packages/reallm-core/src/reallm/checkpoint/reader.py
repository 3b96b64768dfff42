"""Opens a folder of safetensors files, and lists its tensors with their files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from reallm.checkpoint.mxfp4 import dequantized, packed_tensors
from reallm.errors import CheckpointError, quoted
from reallm.foreign_files import check_own, read_json_object, reading, shown
from reallm.hf.checkpoint_folder import adapter_text, refuse_lfs_pointer
from reallm.hf.file_names import ADAPTER_CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Dtypes that parameters may have, by their names in safetensors files."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_CONVERT = (
    "convert them once, on a machine that trusts their source: "
    "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) of transformers"
)


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as described by its file's header. `dtype` is safetensors' name for it, such as "BF16"."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a folder by name; each is a view of its memory-mapped file, read when it is used.

    Those stored in MXFP4 are dequantized to bfloat16 each time they are got.
    """

    folder: Path
    infos: Mapping[str, TensorInfo]
    _files: Mapping[Path, Any] = field(repr=False)
    _names_in_files: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Name -> the tensor's name in its file, if it differs."""
    _packed: Mapping[str, Sequence[tuple[Path, str]]] = field(default_factory=dict, repr=False)
    """Name of a tensor stored in MXFP4 -> files and names of its blocks and scales."""

    def __getitem__(self, name: str) -> Tensor:
        if name in self._packed:
            return dequantized(*(self._files[file].get_tensor(part) for file, part in self._packed[name]))
        tensor = self._files[self.infos[name].file].get_tensor(self._names_in_files.get(name, name))
        assert isinstance(tensor, Tensor)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """The same tensors under other names: new name -> present name."""
        infos = {new: self.infos[name] for new, name in names.items()}
        in_files = {new: self._names_in_files.get(name, name) for new, name in names.items()}
        packed = {new: self._packed[name] for new, name in names.items() if name in self._packed}
        return Checkpoint(self.folder, infos, self._files, in_files, packed)

    def with_packed(self) -> Checkpoint:
        """The checkpoint with a tensor in place of each pair of MXFP4 blocks and scales."""
        pairs = packed_tensors({name: info.shape for name, info in self.infos.items() if info.dtype == "U8"})
        infos, packed = dict(self.infos), dict[str, Sequence[tuple[Path, str]]]()
        for name, (parts, shape) in pairs.items():
            packed[name] = [(infos[part].file, part) for part in parts]
            infos[name] = TensorInfo(infos[parts[0]].file, "BF16", shape)
            for part in parts:
                del infos[part]
        return Checkpoint(self.folder, infos, self._files, self._names_in_files, packed) if packed else self


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Memory-map the safetensors files of a folder; only their headers are read.

    Raises:
        CheckpointError: no safetensors files, a broken one, or an index that does not fit them.
    """
    folder = Path(folder)
    # As in transformers, a single file takes precedence over an index.
    if (folder / WEIGHTS_NAME).exists():
        indexed: dict[str, str] = {}
        file_names = [WEIGHTS_NAME]
    elif (folder / INDEX_NAME).exists():
        indexed = _read_index(folder)
        file_names = list(dict.fromkeys(indexed.values()))
    else:
        raise CheckpointError(_why_no_weights(folder))
    files = {folder / name: _open_file(folder / name) for name in file_names}
    headers = {path: _tensor_infos(path, file) for path, file in files.items()}
    infos = {name: info for header in headers.values() for name, info in header.items()}
    for name, file_name in indexed.items():
        if name not in headers[folder / file_name]:
            raise CheckpointError(f"{folder / INDEX_NAME}: tensor '{name}' is not in '{file_name}'; copy both again")
        infos[name] = headers[folder / file_name][name]
    return Checkpoint(folder, infos, files).with_packed()


def open_file(path: Path) -> Checkpoint:
    """Memory-map a single safetensors file; only its header is read.

    Raises:
        CheckpointError: the file is broken.
    """
    file = _open_file(path)
    return Checkpoint(path.parent, _tensor_infos(path, file), {path: file})


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor -> name of the file that holds it, an existing file directly in this folder."""
    path = folder / INDEX_NAME
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no tensors in its weight_map; copy it again")
    for name, file_name in weight_map.items():
        # Some links in the folder are followed (the hub's cache is made of them), paths in the index are not.
        plain = isinstance(file_name, str) and file_name not in ("", ".", "..") and not set(file_name) & set("/\\\0")
        if not plain:
            raise CheckpointError(
                f"{path}: tensor '{name}' is placed in {shown(file_name)}, outside of the folder: refused"
            )
        if not file_name.endswith(".safetensors"):
            raise CheckpointError(f"{path}: tensor '{name}' is in '{file_name}', not a safetensors file; {_CONVERT}")
    with reading(path, "copy it again"):  # names may be too long for a file
        missing = sorted({file_name for file_name in weight_map.values() if not (folder / file_name).exists()})
    if missing:
        raise CheckpointError(f"{path} names {quoted(missing, 3)}, missing from the folder; download or copy the rest")
    return weight_map


def _why_no_weights(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        return adapter_text(folder)
    pickles = [file.name for pattern in _PICKLES for file in sorted(folder.glob(pattern))]
    if pickles:
        return f"{folder} holds weights only as pickle files ({quoted(pickles, 3)}), which can run code; {_CONVERT}"
    return f"{folder} holds neither {WEIGHTS_NAME} nor {INDEX_NAME}: it is not a complete checkpoint"


def _open_file(path: Path) -> Any:
    with reading(path, "download or copy it again", problem="is truncated or damaged"):
        check_own(path)
        refuse_lfs_pointer(path)
        return safe_open(path, framework="pt", device="cpu")


def _tensor_infos(path: Path, file: Any) -> dict[str, TensorInfo]:
    with reading(path, "download or copy it again", problem="has a damaged header"):
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        return {name: TensorInfo(path, each.get_dtype(), tuple(each.get_shape())) for name, each in slices.items()}
