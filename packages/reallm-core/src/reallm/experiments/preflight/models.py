"""The architecture that a model will have, known before it is loaded."""

from __future__ import annotations

from reallm.config.args import ModelArgs
from reallm.hf.checkpoint_folder import read_hf_config, resolve_path
from reallm.hf.conversion.config import load_model_config
from reallm.hf.conversion.families import family_for
from reallm.model.config import ReaLModelConfig


def planned_model(args: ModelArgs, n_tokens: int | None) -> ReaLModelConfig:
    """The architecture of a role's model: that of its checkpoint, with the head, the rows and adapters that it gets.

    Args:
        args: arguments of the model.
        n_tokens: number of tokens for which it gets rows; None: it keeps those of its checkpoint.

    Raises:
        CheckpointError: it is not a checkpoint, or its `config.json` is not supported; or no adapter of it.
        ConfigError: there is no such layer to adapt.
    """
    model = load_model_config(args.path, is_critic=args.is_critic)
    model = model.replace(vocab_size=max(model.vocab_size, n_tokens or 0))
    if not args.lora.is_on:
        return model
    from reallm.checkpoint.adapter import with_adapters  # imports torch, so only when it is needed

    folder = resolve_path(args.path, weights=False)
    return with_adapters(family_for(read_hf_config(folder), folder), model, args.lora)
