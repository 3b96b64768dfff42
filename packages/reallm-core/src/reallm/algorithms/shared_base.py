"""Roles that have the base model of a trained one's adapters, and so need no base of their own. Imports no torch."""

from __future__ import annotations

from reallm.algorithms.graph import Graph
from reallm.arguments import as_path
from reallm.config.args import ModelArgs
from reallm.config.training import TrainingConfig, model_args


def shared_bases(config: TrainingConfig, graph: Graph) -> dict[str, str]:
    """Role that is never trained -> the trained role whose base model it has.

    That is so if both have the same checkpoint, in the same dtype on the same device, and the trained one has adapters,
    while the other one has none or those with which training begins: such as the reference of a policy that is trained
    with adapters.

    Args:
        config: the configuration that a run began with; a resumed one goes on with other adapters.
        graph: the graph.
    """
    found = {}
    for role in graph.roles:
        if role in graph.trained_roles or role in graph.updated_roles:
            continue
        for trained in graph.trained_roles:
            if _has_base_of(model_args(config, role), model_args(config, trained)):
                found[role] = trained
                break
    return found


def _has_base_of(args: ModelArgs, trained: ModelArgs) -> bool:
    same = all(
        getattr(args, name) == getattr(trained, name)
        for name in ("implementation", "dtype", "is_critic", "resize_vocab")
    )
    return (
        same
        and trained.lora.is_on
        and not args.is_critic
        and _location(args.path) == _location(trained.path)
        and (not args.lora.is_on or _location(args.lora.path) == _location(trained.lora.path))
        and _is_same_device(args.device, trained.device)
    )


def _location(path: str | None) -> str | None:
    folder = None if path is None else as_path(path)
    return path if folder is None or not folder.is_dir() else str(folder.resolve())


def _is_same_device(one: str, other: str) -> bool:
    if one == other:
        return True
    from reallm.dtype_device import device_type  # imports torch, so only when it is needed

    return device_type(one) == device_type(other)
