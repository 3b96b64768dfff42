"""`config.json` <-> `ReaLModelConfig`, and where a checkpoint lies. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reallm.atomic_files import recover_folder
from reallm.errors import CheckpointError, ConfigError
from reallm.hf.conversion.transformers_io import transformers_keys
from reallm.hf.family import HFFamily
from reallm.hf.file_names import CONFIG_NAME, GENERATION_CONFIG_NAME, INDEX_NAME, TOKENIZER_FILES
from reallm.model.config import ReaLModelConfig

if TYPE_CHECKING:
    import torch

_DOWNLOADED = (CONFIG_NAME, GENERATION_CONFIG_NAME, "model*.safetensors", INDEX_NAME,
               *TOKENIZER_FILES)  # fmt: skip
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # null, for the usual ones may exceed the vocabulary
_ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def resolve_path(path_or_id: str | Path) -> Path:
    """The folder of a checkpoint: a local one, or that of a model on the Hugging Face hub, downloaded if need be.

    Raises:
        CheckpointError: neither a folder nor a model that can be had.
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


def read_config(path: str | Path) -> dict[str, Any]:
    """The content of `config.json` in a checkpoint's folder.

    Raises:
        CheckpointError: it is missing or not a JSON object.
    """
    file = Path(path) / CONFIG_NAME
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{file.parent} holds no {CONFIG_NAME}: it is not a checkpoint's folder") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read as JSON ({error})") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{file} holds {type(raw).__name__}, not an object; write it again")
    return raw


def as_raw(config: Any) -> dict[str, Any]:
    """The dict of a HuggingFace configuration: of a mapping, or of a `PretrainedConfig`.

    Raises:
        ConfigError: anything else.
    """
    if isinstance(config, Mapping):
        return dict(config)
    if callable(getattr(config, "to_dict", None)):
        return as_raw(config.to_dict())
    raise ConfigError(f"a HuggingFace configuration or its dict is needed, not {type(config).__name__}")


def saved_as_critic(family: HFFamily, raw: Mapping[str, Any]) -> bool:
    """Whether a `config.json` is that of a model with a scalar head."""
    return any(name in family.critic_architectures for name in raw.get("architectures") or ())


def from_hf(
    family: HFFamily, raw: Mapping[str, Any], *, is_critic: bool | None = None, source: str | Path = CONFIG_NAME
) -> ReaLModelConfig:
    """The architecture that a `config.json` states.

    `is_critic=None` follows its `architectures`; True asks for a scalar head where the file may have none.
    `source` is named in errors.

    Raises:
        CheckpointError: a key that is missing, unsupported, or has a value that is not allowed; names it.
    """
    has_scalar_head = saved_as_critic(family, raw)
    if is_critic is False and has_scalar_head:
        raise CheckpointError(f"{source}: {raw['architectures'][0]} has a scalar head; load it with is_critic=True")
    if has_scalar_head and (labels := _n_labels(raw)) != 1:
        raise CheckpointError(f"{source}: the head gives {labels} numbers a token (num_labels); a critic needs one")
    _refuse_unknown(family, raw, source)
    try:
        fields = family.config.read(raw)
        return ReaLModelConfig(**fields, is_critic=has_scalar_head if is_critic is None else is_critic)
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from error


def _refuse_unknown(family: HFFamily, raw: Mapping[str, Any], source: str | Path) -> None:
    """Refuse keys that the table does not know but transformers does.

    Checkpoints carry notes of all sorts of tools; transformers ignores what its class does not declare, and so do we.
    transformers is imported only where there is such a key.
    """
    unknown = family.config.unknown_keys(raw)
    if not unknown:
        return
    declared = transformers_keys(family.model_type)
    refused = [f"{key}={raw[key]!r}" for key in unknown if key in declared]
    if refused:
        what, it = ("field", "it does") if len(refused) == 1 else ("fields", "they do")
        raise CheckpointError(
            f"{source}: unsupported {what} {', '.join(refused)}; the tables of family '{family.names[0]}' do not know "
            f"what {it}"
        )


def to_hf(
    family: HFFamily,
    config: ReaLModelConfig,
    base: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
) -> dict[str, Any]:
    """The `config.json` of an architecture.

    With `base`, the content of an original file, only what differs from it is changed: the rest, also its spelling,
    is carried over; `architectures` are added if it has none. Without `base` a complete one is made, with token ids
    null. `dtype` ("bfloat16", or torch's object) is that of the tensors; None keeps what `base` says.

    Raises:
        ConfigError: the family cannot state a field's value.
    """
    if config.is_critic and not family.critic_architectures:
        raise ConfigError(f"family '{family.names[0]}' has no checkpoints with a scalar head")
    if base is None:
        raw: dict[str, Any] = {"model_type": family.model_type, **dict.fromkeys(_TOKEN_IDS)}
    else:
        raw = dict(base)
    if not raw.get("architectures") or saved_as_critic(family, raw) != config.is_critic:
        raw["architectures"] = [(family.critic_architectures if config.is_critic else family.architectures)[0]]
        for key in ("id2label", "label2id", "num_labels"):
            raw.pop(key, None)
        raw.update(_ONE_LABEL if config.is_critic else {})
    if dtype is not None:
        # A file that states no dtype stays so: readers then take that of the tensors.
        spellings = [key for key in ("dtype", "torch_dtype") if key in raw] if base is not None else ["dtype"]
        raw.update(dict.fromkeys(spellings, str(dtype).removeprefix("torch.")))
    try:
        return family.config.write(config, raw, complete=base is None)
    except ConfigError as error:
        raise ConfigError(f"family '{family.names[0]}': {error}") from error


def _n_labels(raw: Mapping[str, Any]) -> int:
    """How many numbers a classification head gives; transformers assumes two if nothing is said."""
    labels = raw.get("id2label")
    if labels is not None:
        return len(labels)
    return int(raw.get("num_labels") or 2)
