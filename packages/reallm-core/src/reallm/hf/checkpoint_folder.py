"""The folder of a checkpoint, on disk or downloaded from the Hugging Face hub, and its `config.json`.

Imports no torch.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from reallm.atomic_files import recover_folder
from reallm.errors import CheckpointError
from reallm.hf.file_names import CONFIG_NAME, GENERATION_CONFIG_NAME, INDEX_NAME, TOKENIZER_FILES

_DOWNLOADED = (CONFIG_NAME, GENERATION_CONFIG_NAME, "model*.safetensors", INDEX_NAME,
               *TOKENIZER_FILES)  # fmt: skip


def resolve_path(path_or_id: str | Path) -> Path:
    """The folder of a checkpoint: a local one, or a hub model's, downloaded if it is not in the cache.

    Raises:
        CheckpointError: it is neither a folder nor a model that can be downloaded.
    """
    path = Path(path_or_id).expanduser()
    recover_folder(path)
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the folder that holds {CONFIG_NAME} and the weights")
    if isinstance(path_or_id, Path) or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path_or_id):
        raise CheckpointError(f"{path} does not exist; give a checkpoint's folder or a hub id such as 'org/name'")
    return _download(path_or_id)


def _download(model_id: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model_id, allow_patterns=list(_DOWNLOADED)))
    except Exception as error:  # the hub client raises its own, the HTTP client's and the system's errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"'{model_id}' is no folder here and cannot be downloaded from the Hugging Face hub ({reason}); "
            "check the name and the connection, or give a folder"
        ) from error


def read_hf_config(folder: str | Path) -> dict[str, Any]:
    """The content of `config.json` in a checkpoint's folder.

    Raises:
        CheckpointError: the file is missing or not a JSON object.
    """
    file = Path(folder) / CONFIG_NAME
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent} holds no {CONFIG_NAME}: it is not a checkpoint's folder") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} holds {type(raw).__name__}, not an object; write it again")
    return raw
