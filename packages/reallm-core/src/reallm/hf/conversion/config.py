"""Conversion between `config.json` and `ReaLModelConfig` by a family's `ConfigTable`. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reallm.errors import CheckpointError, ConfigError, kind_of, quoted
from reallm.foreign_files import reading, shown
from reallm.hf.checkpoint_folder import check_identity, read_hf_config, resolve_path
from reallm.hf.conversion.claims import check_claims
from reallm.hf.conversion.families import family_for
from reallm.hf.conversion.transformers_io import transformers_keys
from reallm.hf.family import HFFamily
from reallm.hf.file_names import CONFIG_NAME
from reallm.model.config import ReaLModelConfig
from reallm.notices import notify_once
from reallm.specs import STANDARD_IMPLEMENTATION

if TYPE_CHECKING:
    import torch

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")  # null, since the usual ids may exceed the vocabulary
_ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def hf_config_dict(config: Any) -> dict[str, Any]:
    """A HuggingFace configuration, given as a mapping or a `PreTrainedConfig`, as a dict.

    Raises:
        ConfigError: `config` is neither of these.
    """
    if isinstance(config, Mapping):
        check_identity(config, "the config")
        return dict(config)
    if callable(getattr(config, "to_dict", None)):
        return hf_config_dict(config.to_dict())
    raise ConfigError(f"expected a HuggingFace configuration or its dict, not {kind_of(config)}")


def load_model_config(
    path: str | Path, *, is_critic: bool | None = None, implementation: str = STANDARD_IMPLEMENTATION
) -> ReaLModelConfig:
    """The architecture of a checkpoint, given as a folder or a hub id; reads only its `config.json`.

    `is_critic` is that of `config_from_hf`, `implementation` that of `family_for`.

    Raises:
        CheckpointError: it is not a checkpoint, no installed family reads it, or a key is unsupported.
    """
    folder = resolve_path(path, weights=False)
    raw = read_hf_config(folder)
    return config_of_folder(family_for(raw, folder, implementation), folder, raw, is_critic=is_critic)


def config_of_folder(
    family: HFFamily, folder: Path, raw: Mapping[str, Any], *, is_critic: bool | None = None
) -> ReaLModelConfig:
    """The architecture of a checkpoint's folder, whose `config.json` is `raw`, if its tensors can be those of it.

    `is_critic` is that of `config_from_hf`.

    Raises:
        CheckpointError: a key is wrong, or claims sizes that no tensor of the folder has.
    """
    source = folder / CONFIG_NAME
    config = config_from_hf(family, raw, is_critic=is_critic, source=source)
    try:
        check_claims(folder, config)
    except ConfigError as error:
        raise CheckpointError(f"{source}: {family.config.in_terms_of_file(str(error), raw)}") from None
    return config


def has_critic_head(family: HFFamily, raw: Mapping[str, Any]) -> bool:
    """Whether `architectures` in a `config.json` names a model with a scalar head."""
    return any(name in family.critic_architectures for name in raw.get("architectures") or ())


def config_from_hf(
    family: HFFamily, raw: Mapping[str, Any], *, is_critic: bool | None = None, source: str | Path = CONFIG_NAME
) -> ReaLModelConfig:
    """The architecture that a `config.json` describes.

    `is_critic=None` follows its `architectures`; True gives a scalar head even if the file has none. `source` is named
    in errors.

    Raises:
        CheckpointError: a key is missing, unsupported, or has a value that is not allowed; names it.
    """
    has_scalar_head = has_critic_head(family, raw)
    if is_critic is False and has_scalar_head:
        raise CheckpointError(f"{source}: {raw['architectures'][0]} has a scalar head; load it with is_critic=True")
    if has_scalar_head and (labels := _n_labels(raw, source)) != 1:
        raise CheckpointError(f"{source}: the head gives {labels} numbers per token (num_labels); a critic's gives one")
    _check_unknown_keys(family, raw, source)
    with reading(source, "correct the file", problem="does not describe a model"):
        try:
            fields = family.config.read(raw)
            return ReaLModelConfig(**fields, is_critic=has_scalar_head if is_critic is None else is_critic)
        except ConfigError as error:
            raise CheckpointError(f"{source}: {family.config.in_terms_of_file(str(error), raw)}") from error


def _check_unknown_keys(family: HFFamily, raw: Mapping[str, Any], source: str | Path) -> None:
    """Raise an error for keys that transformers knows but the table does not; a notice names those that neither knows.

    These have no effect in transformers either: many are notes of the tool that wrote the file. transformers is
    imported only if there is an unknown key.
    """
    unknown = family.config.unknown_keys(raw)
    if not unknown:
        return
    declared = transformers_keys(family.model_type)
    ignored = [key for key in unknown if key not in declared]
    if ignored:
        it = "it has" if len(ignored) == 1 else "they have"
        notify_once(f"{source}: neither reallm nor transformers knows {quoted(ignored, 5)}; {it} no effect")
    refused = [f"{key}={shown(raw[key])}" for key in unknown if key in declared]
    if refused:
        what, it = ("field", "it does") if len(refused) == 1 else ("fields", "they do")
        raise CheckpointError(
            f"{source}: unsupported {what} {', '.join(refused)}; the tables of family '{family.names[0]}' do not know "
            f"what {it}"
        )


def config_to_hf(
    family: HFFamily,
    config: ReaLModelConfig,
    base: Mapping[str, Any] | None = None,
    dtype: str | torch.dtype | None = None,
) -> dict[str, Any]:
    """The `config.json` of an architecture.

    With `base`, the content of an original file, only keys whose values differ are changed; the rest is carried over,
    spellings included. `architectures` are set if it has none, or only a class without an output head. A language model
    that becomes a critic loses a padding token that is its end-of-sequence token too: transformers would take the score
    of the token before it. Without `base` a complete file is made, with token ids null. `dtype` ("bfloat16", or torch's
    object) is the dtype of the tensors; None keeps the dtype of `base`.

    Raises:
        ConfigError: the family cannot express a field's value.
    """
    if config.is_critic and not family.critic_architectures:
        raise ConfigError(f"family '{family.names[0]}' has no checkpoints with a scalar head")
    if base is None:
        raw: dict[str, Any] = {"model_type": family.model_type, **dict.fromkeys(_TOKEN_IDS)}
    else:
        raw = dict(base)
    architectures = raw.get("architectures") or ()
    has_head = any(name in family.architectures + family.critic_architectures for name in architectures)
    if not has_head or has_critic_head(family, raw) != config.is_critic:
        raw["architectures"] = [(family.critic_architectures if config.is_critic else family.architectures)[0]]
        for key in ("id2label", "label2id", "num_labels"):
            raw.pop(key, None)
        if config.is_critic:
            raw.update(_ONE_LABEL)
            if _pads_with_end(raw):
                raw["pad_token_id"] = None
    if dtype is not None:
        # A file without a dtype gets none: readers then use the tensors' dtype.
        spellings = [key for key in ("dtype", "torch_dtype") if key in raw] if base is not None else ["dtype"]
        raw.update(dict.fromkeys(spellings, str(dtype).removeprefix("torch.")))
    try:
        return family.config.write(config.base, raw, complete=base is None)
    except ConfigError as error:
        raise ConfigError(f"family '{family.names[0]}': {error}") from error


def _pads_with_end(raw: Mapping[str, Any]) -> bool:
    """Whether the padding token is an end-of-sequence token."""
    pad, ends = raw.get("pad_token_id"), raw.get("eos_token_id")
    return pad is not None and pad in (ends if isinstance(ends, list) else [ends])


def _n_labels(raw: Mapping[str, Any], source: str | Path) -> int:
    """Number of outputs of a classification head; transformers' default is two."""
    labels, number = raw.get("id2label"), raw.get("num_labels")
    if isinstance(labels, Mapping):
        return len(labels)
    if labels is not None or not isinstance(number, int | None):
        key = "num_labels" if labels is None else "id2label"
        raise CheckpointError(f"{source}: {key}={shown(raw[key])} does not say how many numbers the head gives")
    return number or 2
