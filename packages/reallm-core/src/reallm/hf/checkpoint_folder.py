"""The folder of a checkpoint, on disk or downloaded from the Hugging Face hub, and its `config.json`.

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from reallm.arguments import as_path
from reallm.atomic_files import recover_folder
from reallm.errors import CheckpointError, quoted
from reallm.foreign_files import check_own, read_json_object, reading, shown
from reallm.git_lfs import is_lfs_pointer, lfs_pointer_problem
from reallm.hf.file_names import (
    ADAPTER_CONFIG_NAME,
    ADAPTER_WEIGHTS_NAME,
    CONFIG_NAME,
    INDEX_NAME,
    SMALL_FILES,
    TOKENIZER_FILES,
    WEIGHTS_NAME,
)
from reallm.notices import notify_once
from reallm.web_addresses import instead_of, is_web_address

_WEIGHTS = ("model*.safetensors", INDEX_NAME, ADAPTER_WEIGHTS_NAME)


def resolve_path(path_or_id: str | Path, *, weights: bool = True) -> Path:
    """The folder of a checkpoint: a local one, or a hub model's, downloaded if it is not in the cache.

    The folder of a run stands for its newest checkpoint; a notice says so. With `weights=False` only the configuration
    and the tokenizer of a hub model are downloaded.

    Raises:
        CheckpointError: it is neither a folder nor a model that can be downloaded.
    """
    if is_web_address(path_or_id):
        remedy = instead_of(str(path_or_id), dataset=False)
        raise CheckpointError(f"{path_or_id} is a web address, not a folder or an id on the hub; {remedy}")
    path = as_path(path_or_id, CheckpointError)
    recover_folder(path)
    if path.is_dir():
        return path if is_model_folder(path) else _newest_of_run(path) or path
    if path.exists():
        raise CheckpointError(f"{path} is a file; give the folder that holds {CONFIG_NAME} and the weights")
    if isinstance(path_or_id, Path) or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path_or_id):
        raise CheckpointError(f"{path} does not exist; give a checkpoint's folder or a hub id such as 'org/name'")
    return _download(path_or_id, (*SMALL_FILES, *(_WEIGHTS if weights else ())))


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()


def _newest_of_run(path: Path) -> Path | None:
    """The newest checkpoint in the folder of a run, or in its folder `checkpoints`; None if it is neither."""
    run = path.parent if path.name == "checkpoints" and (path.parent / "config.yaml").is_file() else path
    if not _is_run(run):
        return None
    steps = sorted((run / "checkpoints").glob("step-*"), key=lambda step: int(re.sub(r"\D", "", step.name) or 0))
    newest = [step for step in steps if is_model_folder(step)][-1:]
    if not newest:
        return None
    best = run / "checkpoints" / "best"
    other = f"; its best is {best}" if best.is_dir() and best.resolve() != newest[0].resolve() else ""
    notify_once(f"{path} is the folder of a run; its newest checkpoint is taken, {newest[0]}{other}")
    return newest[0]


def _download(model_id: str, files: Sequence[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model_id, allow_patterns=list(files)))
    except Exception as error:  # the hub client raises its own, the HTTP client's and the system's errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"'{model_id}' is not a folder here and cannot be downloaded from the Hugging Face hub ({reason}); "
            "check the name and the connection, or give a folder"
        ) from error


def read_hf_config(folder: str | Path) -> dict[str, Any]:
    """The content of `config.json` in a checkpoint's folder.

    Raises:
        CheckpointError: the file is missing, a Git LFS pointer, or not a JSON object.
    """
    file = Path(folder) / CONFIG_NAME
    if not file.exists():
        raise CheckpointError(_why_no_config(file.parent))
    raw = read_json_object(file)
    check_identity(raw, file)
    return raw


def check_identity(raw: Mapping[str, Any], source: object) -> None:
    """Check the types of the keys of a `config.json` that say which model it is; `source` is named in errors.

    Raises:
        CheckpointError: `model_type` is no text, or `architectures` no list of texts.
    """
    model_type, architectures = raw.get("model_type"), raw.get("architectures")
    if not isinstance(model_type, str | None):
        raise CheckpointError(f"{source}: model_type={shown(model_type)} must be text")
    is_list = isinstance(architectures, list | tuple) and all(isinstance(name, str) for name in architectures)
    if architectures is not None and not is_list:
        raise CheckpointError(f"{source}: architectures={shown(architectures)} must be a list of names of classes")


def _why_no_config(folder: Path) -> str:
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        return adapter_text(folder)
    text = f"{folder} holds no {CONFIG_NAME}: it is not a checkpoint's folder"
    inner = sorted(
        str(file.parent.relative_to(folder))
        for pattern in ("*", "snapshots/*", "*/snapshots/*")
        for file in folder.glob(f"{pattern}/{CONFIG_NAME}")
    )
    if len(inner) == 1:
        return f"{text}; did you mean {folder / inner[0]}?"
    if inner:
        return f"{text}; there are checkpoints in its folders {quoted(inner, 3)}"
    runs = sorted(run.name for run in folder.glob("*") if _is_run(run))
    if runs:
        return f"{text}; it holds the runs {quoted(runs[-3:])}: give one of them"
    return f"{text}, but that of a run that has saved nothing yet" if _is_run(folder) else text


def files_of(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The files in a checkpoint's folder that match one of the patterns, in the order of these; no folders.

    Raises:
        CheckpointError: one of them is a link that leads out of the folder, or no regular file; see `check_own`.
    """
    found = [file for pattern in patterns for file in sorted(folder.glob(pattern)) if not file.is_dir()]
    for file in found:
        with reading(file, "copy the file again, or remove it"):
            check_own(file, folder)
    return found


def is_model_folder(folder: Path) -> bool:
    """Whether a folder holds a checkpoint or an adapter."""
    return any((folder / name).is_file() for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME))


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds an adapter alone, not a whole model."""
    has_weights = any((folder / name).is_file() for name in (WEIGHTS_NAME, INDEX_NAME))
    return (folder / ADAPTER_CONFIG_NAME).is_file() and not has_weights


def resolve_adapter(path_or_id: str | Path) -> Path:
    """The folder of an adapter, local or downloaded; that of a run stands for its newest checkpoint.

    Raises:
        CheckpointError: it holds no adapter.
    """
    folder = resolve_path(path_or_id)
    if not (folder / ADAPTER_CONFIG_NAME).is_file():
        whole = ", but a whole model" if (folder / CONFIG_NAME).is_file() else ""
        raise CheckpointError(f"{folder} holds no adapter (no {ADAPTER_CONFIG_NAME}){whole}")
    return folder


def tokenizer_folder(base: Path, adapter: Path | None) -> Path:
    """The folder with the tokenizer of a model: that of its adapter, if it has one, or else its checkpoint's.

    Raises:
        CheckpointError: a file of the adapter's tokenizer is a link that leads out of its folder.
    """
    if adapter is not None and files_of(adapter, TOKENIZER_FILES):
        return adapter
    return base


def base_folder(folder: Path) -> Path:
    """The folder of the base model of an adapter, which must be at hand: a local folder, or in the hub's cache.

    Raises:
        CheckpointError: it is not; says what to do. Or `adapter_config.json`, which names it, cannot be read.
    """
    base = base_of_adapter(folder)
    if base is not None:
        if as_path(base, CheckpointError).is_dir():
            return resolve_path(base)
        found = _cached(base)
        if found is not None:
            return found
    raise CheckpointError(adapter_text(folder))


def base_of_adapter(folder: Path) -> str | None:
    """The folder or hub id of the base model that an adapter names; None if it names none.

    Raises:
        CheckpointError: `adapter_config.json` cannot be read.
    """
    base = read_json_object(folder / ADAPTER_CONFIG_NAME).get("base_model_name_or_path")
    return base if isinstance(base, str) and base else None


def _cached(model_id: str) -> Path | None:
    """The folder of a hub model in the local cache; None if it is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def adapter_text(folder: Path) -> str:
    """The error for the folder of an adapter without its base model at hand: what the base is, and what to do."""
    base = None
    with suppress(CheckpointError):
        base = base_of_adapter(folder)
    of_base = "" if base is None else f" of '{base}'"
    return (
        f"{folder} holds an adapter{of_base}, not a whole model; give its base model, and the adapter in addition "
        f"(model.lora.path={folder}, or --adapter {folder}), or merge the two: reallm merge {folder} --base MODEL "
        "--output FOLDER"
    )


def refuse_lfs_pointer(file: Path) -> None:
    """Raise CheckpointError if a file is a Git LFS pointer; names it and the remedy."""
    if is_lfs_pointer(file):
        raise CheckpointError(lfs_pointer_problem(file))
