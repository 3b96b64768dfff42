"""Data parallelism with sharded parameters: FSDP2 over the data-parallel ranks.

Each rank holds some rows of each parameter, with their gradient and optimizer state (`sharding.fsdp_box`), and gathers
whole parameters to compute. The ZeRO level (Rajbhandari et al., 2020) determines how much a rank keeps between
micro-batches:

| level | gradients are reduce-scattered | whole parameters are held |
|---|---|---|
| 1 | after the last micro-batch of a step | from its first forward to its last backward pass |
| 2 | after each micro-batch | the same |
| 3 | after each micro-batch | while a block computes |

Gradients are sums over the ranks, not means, and are reduced in at least float32: only the caller knows what its loss
is divided by.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reallm.errors import ConfigError
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Group, Mesh

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
ZERO_LEVELS = (1, 2, 3)


def apply_fsdp(model: Transformer, mesh: Mesh, *, zero: int = 3) -> None:
    """Shard the parameters of this rank's network over `mesh.dp`, in place.

    Each block is an FSDP unit. Embedding, final norm and head together form one unit, which stays gathered from the
    forward pass to the end of the backward pass, since the head is called separately from the forward pass. Scalar
    parameters are not sharded, and their gradients are not reduced by FSDP.

    Args:
        model: this rank's network; its parameters may be on the meta device, to be filled later through
            `local_tensors`.
        mesh: the mesh of a layout with FSDP.
        zero: the ZeRO level.

    Raises:
        ConfigError: the level does not exist, or the data-parallel ranks are not in ascending order.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    if zero not in ZERO_LEVELS:
        raise ConfigError(f"zero={zero} is not one of {', '.join(map(str, ZERO_LEVELS))}")
    mesh.layout.check_ascending(mesh.layout.dp_ranks(mesh.coordinate))
    device_mesh = DeviceMesh.from_group(mesh.dp, _device_type(mesh.dp), mesh_dim_names=("dp",))
    dtype = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    policy = MixedPrecisionPolicy(reduce_dtype=dtype, cast_forward_inputs=False)
    scalars = {parameter for parameter in model.parameters() if parameter.dim() == 0}
    for module in (*(model.layers[str(number)] for number in model.block_numbers), model):
        sharded = fully_shard(
            module,
            mesh=device_mesh,
            reshard_after_forward=zero == 3 and module is not model,
            mp_policy=policy,
            ignored_params=scalars,
        )
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo supports no other
    state = _root(model)._get_fsdp_state()
    for hook in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
        # `forward_hidden` is FSDP's forward pass; hooks of `forward` would add an outer pass, and the inner one would
        # end before the head's
        hook.remove()
    register_fsdp_forward_method(model, "forward_hidden")
    model.zero = zero  # type: ignore[assignment] # modules declare nothing but tensors and modules


def before_backward(model: nn.Module, *, is_last: bool) -> None:
    """Configure what FSDP2 reduces and frees in the next backward pass; does nothing for a network without FSDP.

    Args:
        model: any network.
        is_last: whether the next backward pass is the last of the step.
    """
    if not is_fsdp(model):
        return
    root, zero = _root(model), vars(model)["zero"]
    root.set_requires_gradient_sync(zero > 1 or is_last)
    root.set_reshard_after_backward(zero == 3 or is_last)


def reshard(model: nn.Module) -> None:
    """Free gathered parameters, outside of forward and backward passes; all ranks call it."""
    if is_fsdp(model):
        for module in _fsdp_modules(model):
            module.reshard()


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Gather whole parameters (of this rank's stage and its tensor-parallel box) for the block, then shard them again.

    For forward passes whose number differs between ranks, as in generation: the block runs without FSDP collectives.
    All ranks enter it; nested blocks, and blocks for networks without FSDP, have no effect.
    """
    if not is_sharded(model):
        yield
        return
    blocks = [module for module in _fsdp_modules(model) if module is not cast(object, model)]
    for module in blocks:
        module.set_reshard_after_forward(False, recurse=False)
    for module in _fsdp_modules(model):
        module.unshard()
    try:
        yield
    finally:
        for module in blocks:
            module.set_reshard_after_forward(vars(model)["zero"] == 3, recurse=False)
        reshard(model)


def _fsdp_modules(model: nn.Module) -> list[FSDPModule]:
    return [cast("FSDPModule", module) for module in model.modules() if hasattr(module, "reshard")]


def _root(model: nn.Module) -> FSDPModule:
    return cast("FSDPModule", model)


def _device_type(group: Group) -> str:
    return "cuda" if "nccl" in dist.get_backend(group) else "cpu"


def is_fsdp(model: nn.Module) -> bool:
    """Whether FSDP2 holds the parameters."""
    return hasattr(model, "reshard")


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 holds the parameters, and has not gathered all of them."""
    return is_fsdp(model) and any(hasattr(parameter, "to_local") for parameter in model.parameters())


def local_tensors(model: nn.Module) -> dict[str, Tensor]:
    """This rank's part of each parameter by name, not a copy; with FSDP, its rows, after gathered ones are freed."""
    reshard(model)
    return {name: to_local(parameter.detach()) for name, parameter in model.named_parameters()}


def to_local(tensor: Any) -> Tensor:
    """This rank's part of a DTensor; any other tensor unchanged."""
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    assert isinstance(local, Tensor)
    return local
