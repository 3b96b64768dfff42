"""Writes checkpoint folders as transformers does, one file or shards with an index; folders appear atomically."""

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
from torch import Tensor

from reallm.atomic_files import atomic_folder
from reallm.checkpoint.hashing import Checksums, write_with_checksum
from reallm.errors import ConfigError
from reallm.foreign_files import read_json_object
from reallm.hf.checkpoint_folder import files_of
from reallm.hf.conversion.state_dict import LazyHFStateDict
from reallm.hf.conversion.transformers_io import end_of_sequence_ids
from reallm.hf.file_names import (
    ADAPTER_WEIGHTS_NAME,
    CONFIG_NAME,
    GENERATION_CONFIG_NAME,
    INDEX_NAME,
    SMALL_FILES,
    TOKENIZER_FILES,
    WEIGHTS_NAME,
)
from reallm.swallowed_errors import raising_swallowed
from reallm.tensor_files import file_pieces, save_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_METADATA = {"format": "pt"}  # asked for by transformers
_CHECKPOINT_FILES = (
    *(pattern.partition("/")[0] for pattern in SMALL_FILES),
    INDEX_NAME,
    WEIGHTS_NAME,
    "model-*-of-*.safetensors",
    ADAPTER_WEIGHTS_NAME,
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `Export`, `ShardedExport` and `AdapterExport`.

    Raises:
        ConfigError: `max_shard_size` is not a size.
    """

    dtype: torch.dtype | None = None
    """Dtype to convert to while writing; None keeps each tensor's dtype."""
    max_shard_size: int | str = "5GB"
    """Largest size of a file, in bytes or such as "5GB". Of several ranks, each writes its own files."""
    carry_from: Path | None = None
    """Folder whose tokenizer and generation config are copied."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """Tokenizer to save instead of the one in `carry_from`."""

    def __post_init__(self) -> None:
        plan_shards({}, self.max_shard_size)


@dataclass(frozen=True)
class Export(ExportOptions):
    """The content of a checkpoint folder that one process writes. The tensors are the model's, not copies.

    Raises:
        ConfigError: `max_shard_size` is not a size.
    """

    hf_config: Mapping[str, Any]
    """Content of `config.json`."""
    tensors: Mapping[str, Tensor]
    """Tensors by their names in the checkpoint, in the order of the files; converted and moved to the CPU one shard at
    a time."""

    def write_into(self, folder: Path, checksums: Checksums | None = None) -> None:
        """Write the files into an existing folder; an interruption may leave it incomplete.

        Args:
            folder: the folder.
            checksums: if given, those of the files with tensors are added to it.
        """
        write_small_files(folder, self.hf_config, carry_from=self.carry_from, tokenizer=self.tokenizer)
        write_tensors(folder, self.tensors, dtype=self.dtype, max_shard_size=self.max_shard_size, checksums=checksums)


def write_checkpoint(folder: str | Path, export: Export) -> None:
    """Write a checkpoint atomically: even if killed, `folder` holds either its former content or the new checkpoint.

    The folder is made if missing. Files in it that are not part of a checkpoint, such as a README, stay.

    Raises:
        DataError: the folder cannot be written.
    """
    with atomic_folder(folder, keep=is_unrelated_file) as new:
        export.write_into(new)


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    checksums: Checksums | None = None,
) -> None:
    """Write tensors as `model.safetensors`, or as several files with an index; see `Export` for the arguments."""
    on_meta = _on_meta(tensors)
    sizes = {name: tensor.numel() * (dtype or tensor.dtype).itemsize for name, tensor in on_meta.items()}
    shards = plan_shards(sizes, max_shard_size)
    for file_name, names in shards.items():
        content = {name: tensors[name].detach().to("cpu", dtype) for name in names}
        write_file(folder / file_name, content, checksums)
    if len(shards) > 1:
        write_index(folder, shards, sum(sizes.values()), sum(tensor.numel() for tensor in on_meta.values()))


def plan_shards(sizes: Mapping[str, int], max_shard_size: int | str) -> dict[str, list[str]]:
    """File -> names of the tensors in it, sharded as transformers would; `sizes` are in bytes.

    Raises:
        ConfigError: `max_shard_size` is not a size.
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


def write_file(path: Path, tensors: Mapping[str, Tensor], checksums: Checksums | None = None) -> None:
    """Write CPU tensors as one safetensors file, whose checksum is added to `checksums` if these are given."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if checksums is None:
        save_tensors(contiguous, path, _METADATA)
    else:
        checksums[path] = write_with_checksum(path, file_pieces(contiguous, _METADATA))


def write_index(folder: Path, shards: Mapping[str, Sequence[str]], n_bytes: int, n_parameters: int) -> None:
    """Write `model.safetensors.index.json`, which maps tensors to files."""
    weight_map = {name: file_name for file_name, names in shards.items() for name in names}
    metadata = {"total_parameters": n_parameters, "total_size": n_bytes}
    write_json(folder / INDEX_NAME, {"metadata": metadata, "weight_map": weight_map})


def write_small_files(
    folder: Path,
    hf_config: Mapping[str, Any],
    *,
    carry_from: Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write a checkpoint's files other than its tensors: config, tokenizer, generation config; see `Export`."""
    write_json(folder / CONFIG_NAME, hf_config)
    write_tokenizer(folder, carry_from=carry_from, tokenizer=tokenizer)
    if carry_from is not None:
        _copy_files(carry_from, folder, (GENERATION_CONFIG_NAME,))
    if tokenizer is not None and tokenizer.eos_token_id is not None:
        _add_stop_token(folder, hf_config, tokenizer.eos_token_id)


def write_tokenizer(folder: Path, *, carry_from: Path | None, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Save a tokenizer, or else copy that of another folder; see `ExportOptions`."""
    if tokenizer is not None:
        with raising_swallowed(folder):
            tokenizer.save_pretrained(str(folder))
    elif carry_from is not None:
        _copy_files(carry_from, folder, TOKENIZER_FILES)


def _add_stop_token(folder: Path, hf_config: Mapping[str, Any], token: int) -> None:
    """Have the generation config of a folder name a token that ends a sequence, if it names only others."""
    ids = end_of_sequence_ids(hf_config, folder)
    if token not in ids:
        path = folder / GENERATION_CONFIG_NAME
        content = read_json_object(path) if path.exists() else {}
        write_json(path, {**content, "eos_token_id": [*ids, token]})


def _on_meta(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the same shapes and dtypes on the meta device, without making the real ones."""
    if isinstance(tensors, LazyHFStateDict):
        return {name: tensors.meta_tensor(name) for name in tensors}
    return dict(tensors)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file as transformers does."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _copy_files(source: Path, destination: Path, patterns: tuple[str, ...]) -> None:
    for file in files_of(source, patterns):
        target = destination / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)


def is_unrelated_file(name: str) -> bool:
    """Whether a file in a checkpoint's folder is not part of the checkpoint, and stays when that is replaced."""
    return not any(fnmatchcase(name, pattern) for pattern in _CHECKPOINT_FILES)
