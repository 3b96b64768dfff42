"""Write checkpoint folders as transformers does: one file or shards with an index, all or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor

from reallm.data.files import atomic_folder
from reallm.errors import ConfigError
from reallm.hf.file_names import CONFIG_NAME, GENERATION_CONFIG_NAME, INDEX_NAME, TOKENIZER_FILES, WEIGHTS_NAME
from reallm.hf.weights import HFState

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACED = (CONFIG_NAME, GENERATION_CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME, "model-*-of-*.safetensors",
             *(pattern.partition("/")[0] for pattern in TOKENIZER_FILES))  # fmt: skip


@dataclass(frozen=True)
class Export:
    """What a checkpoint folder is to hold. The tensors are those of the model, not copies.

    Raises:
        ConfigError: `max_shard_size` is no size.
    """

    hf_config: Mapping[str, Any]
    """Content of `config.json`."""
    tensors: Mapping[str, Tensor]
    """By their names in the checkpoint, in the order of the files. Made and moved to the CPU one shard at a time."""
    dtype: torch.dtype | None = None
    """Convert to this on the way; None keeps each tensor's own."""
    max_shard_size: int | str = "5GB"
    """Bytes, or a size such as "5GB"; more are split over several files."""
    carry_from: Path | None = None
    """Folder whose tokenizer and generation config are copied."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """Saved instead of the tokenizer in `carry_from`."""

    def __post_init__(self) -> None:
        _plan_shards({}, None, self.max_shard_size)

    def write_into(self, folder: Path) -> None:
        """Write the files into an existing folder, which may be half written if this is interrupted."""
        _write_json(folder / CONFIG_NAME, self.hf_config)
        write_tensors(folder, self.tensors, dtype=self.dtype, max_shard_size=self.max_shard_size)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(str(folder))
        if self.carry_from is not None:
            _carry(self.carry_from, folder, (GENERATION_CONFIG_NAME, *(() if self.tokenizer else TOKENIZER_FILES)))


def write_checkpoint(folder: str | Path, export: Export) -> None:
    """Write a checkpoint; killed at any moment, `folder` holds what it held before or the whole new checkpoint.

    The folder is made if missing. Files in it that belong to no checkpoint (a README, say) stay.

    Raises:
        DataError: the folder cannot be written.
    """
    with atomic_folder(folder, keep=_is_no_part) as new:
        export.write_into(new)


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write tensors as `model.safetensors`, or as several files with an index; see `Export` for the arguments."""
    shards = _plan_shards(tensors, dtype, max_shard_size)
    for file_name, names in shards.items():
        shard = {name: tensors[name].detach().to("cpu", dtype).contiguous() for name in names}
        save_file(shard, folder / file_name, metadata={"format": "pt"})
    if len(shards) > 1:
        _write_json(folder / INDEX_NAME, _index(_like(tensors), dtype, shards))


def _plan_shards(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, max_shard_size: int | str
) -> dict[str, list[str]]:
    """File -> names of the tensors in it, as transformers divides them."""
    try:
        split = split_state_dict_into_shards_factory(
            _like(tensors),
            get_storage_size=lambda tensor: _n_bytes(tensor, dtype),
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise ConfigError(f"max_shard_size={max_shard_size!r} is not a number of bytes or a size like '5GB'") from error
    return split.filename_to_tensors


def _index(tensors: Mapping[str, Tensor], dtype: torch.dtype | None, shards: Mapping[str, list[str]]) -> dict[str, Any]:
    """The content of `model.safetensors.index.json`."""
    return {
        "metadata": {
            "total_parameters": sum(tensor.numel() for tensor in tensors.values()),
            "total_size": sum(_n_bytes(tensor, dtype) for tensor in tensors.values()),
        },
        "weight_map": {name: file_name for file_name, names in shards.items() for name in names},
    }


def _like(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same shapes and dtypes, for which nothing is made."""
    return {name: tensors.like(name) for name in tensors} if isinstance(tensors, HFState) else dict(tensors)


def _n_bytes(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _carry(source: Path, new: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for file in source.glob(pattern):
            target = new / file.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def _is_no_part(name: str) -> bool:
    """Whether a file of the old folder has nothing to do with its checkpoint."""
    return not any(fnmatchcase(name, pattern) for pattern in _REPLACED)
