"""Write checkpoint folders as transformers does: one file or shards with an index, all or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
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

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACED = (CONFIG_NAME, GENERATION_CONFIG_NAME, INDEX_NAME, WEIGHTS_NAME, "model-*-of-*.safetensors",
             *(pattern.partition("/")[0] for pattern in TOKENIZER_FILES))  # fmt: skip


def write_checkpoint(
    folder: str | Path,
    hf_config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    carry_from: str | Path | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """Write a checkpoint; killed at any moment, `folder` holds what it held before or the whole new checkpoint.

    Files in `folder` that belong to no checkpoint (a README, say) stay.

    Args:
        folder: made if missing.
        hf_config: content of `config.json`.
        tensors: by their names in the checkpoint, in the order of the files. Moved to the CPU one shard at a time.
        dtype: convert to this on the way; None keeps each tensor's own.
        max_shard_size: bytes, or a size such as "5GB"; more are split over several files.
        carry_from: folder whose tokenizer and generation config are copied.
        tokenizer: saved instead of the tokenizer in `carry_from`.

    Raises:
        DataError: the folder cannot be written.
        ConfigError: `max_shard_size` is no size.
    """
    shards = _plan_shards(tensors, dtype, max_shard_size)
    with atomic_folder(folder, keep=_is_no_part) as new:
        _write_json(new / CONFIG_NAME, hf_config)
        for file_name, names in shards.items():
            shard = {name: tensors[name].detach().to("cpu", dtype).contiguous() for name in names}
            save_file(shard, new / file_name, metadata={"format": "pt"})
        if len(shards) > 1:
            _write_json(new / INDEX_NAME, _index(tensors, dtype, shards))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(new))
        if carry_from is not None:
            _carry(Path(carry_from), new, (GENERATION_CONFIG_NAME, *(() if tokenizer else TOKENIZER_FILES)))


def _plan_shards(
    tensors: Mapping[str, Tensor], dtype: torch.dtype | None, max_shard_size: int | str
) -> dict[str, list[str]]:
    """File -> names of the tensors in it, as transformers divides them."""
    try:
        split = split_state_dict_into_shards_factory(
            dict(tensors),
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
