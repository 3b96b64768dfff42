"""The tensors that a rank really has of a model's parameters, whether FSDP holds them or nobody does."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 holds the parameters."""
    return hasattr(model, "reshard")


def local_tensors(model: nn.Module) -> dict[str, Tensor]:
    """This rank's part of each parameter by name, not a copy; of those of FSDP their rows at rest."""
    if is_sharded(model):
        for module in model.modules():
            if is_sharded(module):
                module.reshard()  # type: ignore[operator]
    return {name: local(parameter.detach()) for name, parameter in model.named_parameters()}


def local(tensor: Any) -> Tensor:
    """What a rank has of a tensor."""
    part = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    assert isinstance(part, Tensor)
    return part
