"""The architecture that a model will have, known before it is loaded."""

from __future__ import annotations

from reallm.config.args import ModelArgs
from reallm.hf.conversion.config import load_model_config
from reallm.model.config import ReaLModelConfig


def planned_model(args: ModelArgs, n_tokens: int | None) -> ReaLModelConfig:
    """The architecture of a role's model: that of its checkpoint, with the head and the rows that it gets.

    Args:
        args: arguments of the model.
        n_tokens: number of tokens for which it gets rows; None: it keeps those of its checkpoint.

    Raises:
        CheckpointError: it is not a checkpoint, or its `config.json` is not supported.
    """
    model = load_model_config(args.path, is_critic=args.is_critic)
    return model.replace(vocab_size=max(model.vocab_size, n_tokens or 0))
