"""The models of roles before they are loaded: where they are, and the architecture that they will have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from reallm.config.args import ModelArgs
from reallm.config.lora import LoRAArgs
from reallm.config.training import TrainingConfig, model_args
from reallm.errors import CheckpointError, ConfigError
from reallm.hf.checkpoint_folder import base_folder, is_adapter_folder, read_hf_config, resolve_path
from reallm.hf.conversion.config import load_model_config
from reallm.hf.conversion.families import family_for
from reallm.model.config import ReaLModelConfig

T = TypeVar("T", bound=TrainingConfig)


def planned_model(args: ModelArgs, n_tokens: int | None) -> ReaLModelConfig:
    """The architecture of a role's model: that of its checkpoint, with the head, the rows and adapters that it gets.

    Args:
        args: arguments of the model.
        n_tokens: number of tokens for which it gets rows; None: it keeps those of its checkpoint.

    Raises:
        CheckpointError: it is not a checkpoint, its `config.json` is not supported, or `lora.path` holds no adapter
            of such a model.
        ConfigError: there is no such layer to adapt.
    """
    model = load_model_config(args.path, is_critic=args.is_critic, implementation=args.implementation)
    model = model.replace(vocab_size=max(model.vocab_size, n_tokens or 0))
    if not args.lora.is_on:
        return model
    from reallm.checkpoint.adapter import with_adapters  # imports torch, so only when it is needed

    folder = resolve_path(args.path, weights=False)
    family = family_for(read_hf_config(folder), folder, args.implementation)
    return with_adapters(family, model, args.lora)


def with_base_models(config: T, roles: Sequence[str]) -> T:
    """The configuration with the base model and the adapter of each role whose path is the folder of an adapter.

    Args:
        config: the configuration of an algorithm.
        roles: the roles; those that are trained say whether to go on with the adapter by `lora.path`.

    Raises:
        ConfigError: a path is not that of a model, or a base model is not at hand; names the role and says what to do.
    """
    changes: dict[str, Any] = {}
    for role in roles:
        args = model_args(config, role)
        if not args.path or args.lora.is_on:
            continue
        try:
            folder = resolve_path(args.path)
            if is_adapter_folder(folder):
                changes[role] = replace(args, path=str(base_folder(folder)), lora=LoRAArgs(path=str(folder)))
        except CheckpointError as error:
            raise ConfigError(f"{role}.path: {error}") from error
    return replace(config, **changes) if changes else config
