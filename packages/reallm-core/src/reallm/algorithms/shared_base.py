"""Roles that are the base model of a trained one's adapters, and so need no weights of their own. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from reallm.algorithms.graph import Graph
from reallm.config.args import ModelArgs
from reallm.config.training import TrainingConfig, model_args


def shared_bases(config: TrainingConfig, graph: Graph) -> dict[str, str]:
    """Role that is never trained -> the trained role whose model, without its adapters, it is.

    That is so if both have the same checkpoint, in the same dtype, and only the trained one has adapters: such as the
    reference of a policy that is trained with adapters.
    """
    found = {}
    for role in graph.roles:
        if role in graph.trained_roles or role in graph.updated_roles:
            continue
        for trained in graph.trained_roles:
            if _is_base_of(model_args(config, role), model_args(config, trained)):
                found[role] = trained
                break
    return found


def _is_base_of(args: ModelArgs, trained: ModelArgs) -> bool:
    same = all(
        getattr(args, name) == getattr(trained, name)
        for name in ("implementation", "dtype", "device", "is_critic", "resize_vocab")
    )
    return (
        same
        and trained.lora.is_on
        and not args.lora.is_on
        and not args.is_critic
        and _location(args.path) == _location(trained.path)
    )


def _location(path: str) -> str:
    folder = Path(path).expanduser()
    return str(folder.resolve()) if folder.is_dir() else path
