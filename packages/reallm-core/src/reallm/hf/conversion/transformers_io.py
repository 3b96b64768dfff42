"""Conversion to and from objects of transformers, which is imported inside the functions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reallm.errors import CheckpointError, kind_of
from reallm.foreign_files import read_json_object, reading, shown
from reallm.hf.checkpoint_folder import files_of, refuse_lfs_pointer
from reallm.hf.file_names import CONFIG_NAME, GENERATION_CONFIG_NAME, TOKENIZER_FILES
from reallm.swallowed_errors import raising_swallowed

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


_TOKENIZER_ARGUMENTS = ("tokenizer_config.json", "special_tokens_map.json")
"""Files whose keys transformers hands to the class of the tokenizer."""
_LARGEST_TOKENIZER_FILE = 1 << 28
_UNUSED_IDS, _FEW_IDS = 4, 1 << 16
"""The highest id of a tokenizer is below four times the number of its tokens, or they are few."""
_LARGEST_ID = (1 << 31) - 1
_SAMPLE = "An example, 1 + 1: été."


def transformers_config(raw: Mapping[str, Any]) -> PreTrainedConfig:
    """The transformers config for the content of a `config.json`."""
    from transformers import AutoConfig

    content = dict(raw)
    return AutoConfig.for_model(content.pop("model_type"), **content)


def transformers_keys(model_type: str) -> frozenset[str]:
    """The keys of `config.json` that transformers knows for a model type; none if it does not know the type.

    They are the keys that its class declares, and older ones that it only pops from its keyword arguments.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    if model_type not in CONFIG_MAPPING:
        return frozenset()
    config_class = CONFIG_MAPPING[model_type]
    keys = set(config_class().to_dict())
    for cls in config_class.__mro__[: config_class.__mro__.index(PreTrainedConfig)]:
        try:
            keys.update(re.findall(r"""kwargs\.(?:pop|get)\(\s*["'](\w+)["']""", inspect.getsource(cls)))
        except OSError:  # its source is not installed
            continue
    return frozenset(keys)


def obstacle_to_family(model_type: str) -> str | None:
    """Why no family can read the checkpoints of a model type; empty if one can, None if transformers does not know it.

    Only what the lists of transformers tell: a model that is none of these may still have layers that the core lacks.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto

    if model_type not in CONFIG_MAPPING:
        return None
    if getattr(CONFIG_MAPPING[model_type], "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if model_type not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "transformers has no causal language model of it"
    # those that also fill masks see later tokens, unless they are told to be decoders
    return "it is bidirectional" if model_type in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES else ""


def transformers_model(raw: Mapping[str, Any], state: Mapping[str, Tensor]) -> PreTrainedModel:
    """The transformers model of a `config.json`, with copies of the given tensors, in evaluation mode."""
    import transformers

    config = transformers_config(raw)
    model_class = getattr(transformers, raw["architectures"][0])
    copies = {name: tensor.detach().clone() for name, tensor in state.items()}
    dtype = next(iter(copies.values())).dtype
    model: PreTrainedModel = model_class.from_pretrained(None, config=config, state_dict=copies, dtype=dtype)
    return model


def checkpoint_state(model: PreTrainedModel, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The tensors of a transformers model as in its checkpoints; in memory they may be fused or stacked.

    `state` gives other tensors to convert, such as gradients, by the names that parameters have in memory.
    """
    tensors = model.state_dict() if state is None else dict(state)
    try:
        from transformers.core_model_loading import revert_weight_conversion
    except ImportError:  # an older transformers 5 holds them as checkpoints do
        return tensors
    return dict(revert_weight_conversion(model, tensors))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint's folder.

    Raises:
        CheckpointError: the folder has no tokenizer, or one with links that lead out of it, or transformers cannot load
            it.
    """
    from transformers import AutoTokenizer

    files = files_of(folder, TOKENIZER_FILES)
    files_of(folder, ("*",))  # transformers chooses files itself, such as `vocab.txt`, by the class of the tokenizer
    if not files:
        raise CheckpointError(f"{folder} holds no tokenizer; copy the tokenizer's files into it, or give one")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    remedy = "copy its files again, or take another one"
    with reading(f"{folder}: the tokenizer", remedy, problem="cannot be loaded"):
        for file in files:
            _check_tokenizer_file(file)
        for name in _TOKENIZER_ARGUMENTS:
            if (folder / name).exists():
                _check_no_paths(read_json_object(folder / name), name)
        config = _config_for_tokenizer(folder)
        with raising_swallowed(folder):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), config=config, **options)
        _check_tokenizer(tokenizer)
    return tokenizer


def _check_tokenizer_file(file: Path) -> None:
    refuse_lfs_pointer(file)
    if file.stat().st_size > _LARGEST_TOKENIZER_FILE:
        raise ValueError(f"{file.name} is larger than {_LARGEST_TOKENIZER_FILE >> 20} MiB")


def _check_no_paths(arguments: Mapping[str, Any], source: str) -> None:
    """Raise ValueError if arguments of a tokenizer's class name a file of any folder, which would become its tokens.

    Its files are found by their names in the folder of the checkpoint, and what `*_file` names is not looked at.
    """
    for key in ("vocab", "merges"):
        if isinstance(arguments.get(key), str):
            raise ValueError(f"{source} has a path as {key}, {shown(arguments[key])}, which is not followed")
    if arguments.get("init_inputs"):
        raise ValueError(f"{source} has init_inputs, {shown(arguments['init_inputs'])}, which may be paths")


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise an error, of any type, if a tokenizer that could be made of files does not work."""
    ids = tokenizer.get_vocab().values()
    if not ids:
        raise ValueError("it has no tokens")
    if not 0 <= max(ids) < _UNUSED_IDS * len(ids) + _FEW_IDS:  # the model gets a row for each id
        raise ValueError(f"it has {len(ids):,} tokens, but ids up to {max(ids):,}")
    templates = tokenizer.chat_template
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        if not isinstance(template, str | None):
            raise TypeError(f"its chat template is {kind_of(template)}, not text")
    tokenizer.decode(tokenizer.encode(_SAMPLE))
    _ = (tokenizer.special_tokens_map, tokenizer.all_special_ids, tokenizer.added_tokens_decoder)


def _config_for_tokenizer(folder: Path) -> PreTrainedConfig | None:
    """What AutoTokenizer reads of a folder's `config.json` if the class of the tokenizer is named elsewhere; else None.

    Without it AutoTokenizer makes a config of the model's own class, whose module imports `torch._dynamo`, `sympy` and
    the distributed tensors: more than half of the time that loading a tokenizer takes in a new process.
    """
    from transformers import PreTrainedConfig

    raw, tokenizer = (_json_object(folder / name) for name in (CONFIG_NAME, "tokenizer_config.json"))
    names_class = isinstance(tokenizer.get("tokenizer_class"), str) and "auto_map" not in tokenizer
    if not names_class or not isinstance(raw.get("model_type"), str):
        return None
    keys = ("model_type", "model_name", "tokenizer_class", "_name_or_path")
    values = {"name_or_path": str(folder)} | {key: raw[key] for key in keys if key in raw}
    return PreTrainedConfig(**values)


def _json_object(file: Path) -> dict[str, Any]:
    """The content of a file; empty if it cannot be read, or holds something else."""
    with suppress(CheckpointError):
        return read_json_object(file)
    return {}


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> int:
    """Add tokens to a tokenizer, in place; returns how many it did not have.

    They are ordinary tokens, which decoded text shows: each occurrence of the text becomes this one token.
    """
    from transformers import AddedToken

    return int(tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tokens]))


def n_token_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """The smallest vocabulary size that has all ids of a tokenizer: its highest id, plus one."""
    return max(tokenizer.get_vocab().values()) + 1


def end_of_sequence_ids(raw: Mapping[str, Any], folder: Path | None = None) -> list[int]:
    """Token ids that end a sequence, from the folder's generation config, else from `config.json`; may be empty.

    Raises:
        CheckpointError: the generation config cannot be read.
    """
    ids, source = None, Path(CONFIG_NAME) if folder is None else folder / CONFIG_NAME
    if folder is not None and (file := folder / GENERATION_CONFIG_NAME).exists():
        ids = read_json_object(file).get("eos_token_id")
        source = source if ids is None else file
    if ids is None:
        ids = raw.get("eos_token_id")
    found = [] if ids is None else list(ids) if isinstance(ids, list | tuple) else [ids]
    for token in found:
        if not isinstance(token, int) or isinstance(token, bool) or not -1 <= token <= _LARGEST_ID:
            raise CheckpointError(
                f"{source}: eos_token_id={shown(ids)} must be the id of a token, or a list of them; correct it"
            )
    return [token for token in found if token >= 0]  # -1 means none
