"""Write checkpoint folders as transformers does: one file or shards with an index, all or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors.torch import save_file
from torch import Tensor

from reallm.atomic_files import atomic_folder
from reallm.errors import ConfigError
from reallm.hf.conversion.state_dict import HFState
from reallm.hf.file_names import CONFIG_NAME, GENERATION_CONFIG_NAME, INDEX_NAME, TOKENIZER_FILES, WEIGHTS_NAME

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACED = (CONFIG_NAME, GENERATION_CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME, "model-*-of-*.safetensors",
             *(pattern.partition("/")[0] for pattern in TOKENIZER_FILES))  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a checkpoint folder is written.

    Raises:
        ConfigError: `max_shard_size` is no size.
    """

    dtype: torch.dtype | None = None
    """Convert to this on the way; None keeps each tensor's own."""
    max_shard_size: int | str = "5GB"
    """Bytes, or a size such as "5GB"; more are split over several files. Each rank that writes has one at
    least."""
    carry_from: Path | None = None
    """Folder whose tokenizer and generation config are copied."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """Saved instead of the tokenizer in `carry_from`."""

    def __post_init__(self) -> None:
        plan_shards({}, self.max_shard_size)


@dataclass(frozen=True)
class Export(ExportOptions):
    """What a checkpoint folder is to hold. The tensors are those of the model, not copies.

    Raises:
        ConfigError: `max_shard_size` is no size.
    """

    hf_config: Mapping[str, Any]
    """Content of `config.json`."""
    tensors: Mapping[str, Tensor]
    """By their names in the checkpoint, in the order of the files. Made and moved to the CPU one shard at a time."""

    def write_into(self, folder: Path) -> None:
        """Write the files into an existing folder, which may be half written if this is interrupted."""
        write_small_files(folder, self.hf_config, carry_from=self.carry_from, tokenizer=self.tokenizer)
        write_tensors(folder, self.tensors, dtype=self.dtype, max_shard_size=self.max_shard_size)


def write_checkpoint(folder: str | Path, export: Export) -> None:
    """Write a checkpoint; killed at any moment, `folder` holds what it held before or the whole new checkpoint.

    The folder is made if missing. Files in it that belong to no checkpoint (a README, say) stay.

    Raises:
        DataError: the folder cannot be written.
    """
    with atomic_folder(folder, keep=is_no_part) as new:
        export.write_into(new)


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write tensors as `model.safetensors`, or as several files with an index; see `Export` for the arguments."""
    like = _like(tensors)
    sizes = {name: tensor.numel() * (dtype or tensor.dtype).itemsize for name, tensor in like.items()}
    shards = plan_shards(sizes, max_shard_size)
    for file_name, names in shards.items():
        write_file(folder / file_name, {name: tensors[name].detach().to("cpu", dtype) for name in names})
    if len(shards) > 1:
        write_index(folder, shards, sum(sizes.values()), sum(tensor.numel() for tensor in like.values()))


def plan_shards(sizes: Mapping[str, int], max_shard_size: int | str) -> dict[str, list[str]]:
    """File -> names of the tensors in it, as transformers divides tensors of these sizes in bytes.

    Raises:
        ConfigError: `max_shard_size` is no size.
    """
    try:
        split = split_state_dict_into_shards_factory(
            dict(sizes),
            get_storage_size=lambda size: size,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except ValueError as error:
        raise ConfigError(f"max_shard_size={max_shard_size!r} is not a number of bytes or a size like '5GB'") from error
    return split.filename_to_tensors


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors on the CPU as one file."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, path, metadata={"format": "pt"})


def write_index(folder: Path, shards: Mapping[str, Sequence[str]], n_bytes: int, n_parameters: int) -> None:
    """Write `model.safetensors.index.json`, which says which file has which tensors."""
    weight_map = {name: file_name for file_name, names in shards.items() for name in names}
    metadata = {"total_parameters": n_parameters, "total_size": n_bytes}
    _write_json(folder / INDEX_NAME, {"metadata": metadata, "weight_map": weight_map})


def write_small_files(
    folder: Path,
    hf_config: Mapping[str, Any],
    *,
    carry_from: Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write all of a checkpoint but its tensors; see `Export` for the arguments."""
    _write_json(folder / CONFIG_NAME, hf_config)
    if tokenizer is not None:
        tokenizer.save_pretrained(str(folder))
    if carry_from is not None:
        _carry(carry_from, folder, (GENERATION_CONFIG_NAME, *(() if tokenizer else TOKENIZER_FILES)))


def _like(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same shapes and dtypes, for which nothing is made."""
    return {name: tensors.like(name) for name in tensors} if isinstance(tensors, HFState) else dict(tensors)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _carry(source: Path, new: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for file in source.glob(pattern):
            target = new / file.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def is_no_part(name: str) -> bool:
    """Whether a file of the old folder has nothing to do with its checkpoint."""
    return not any(fnmatchcase(name, pattern) for pattern in _REPLACED)
