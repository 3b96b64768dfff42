"""Data parallelism with split parameters: FSDP2 over the ranks that do the same on other data.

Each rank holds a part of the rows of each parameter, with its gradient and its optimizer state (`placement.fsdp_box`),
and gathers whole parameters while it computes. How much of them it keeps between micro-batches is a level, after
Rajbhandari et al., 2020 (ZeRO):

| level | gradients are added up over the ranks | whole parameters are held |
|---|---|---|
| 1 | after the last micro-batch of a step | from its first forward to its last backward pass |
| 2 | after each micro-batch | the same |
| 3 | after each micro-batch | while a block computes |

Gradients are sums over the ranks, not means, and are added up in at least float32: what a loss is divided by is known
to who computes it.
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
LEVELS = (1, 2, 3)


def apply_fsdp(model: Transformer, mesh: Mesh, *, zero: int = 3) -> None:
    """Split the parameters of this rank's part of a network over `mesh.dp`, in place.

    Each block is gathered at once; embedding, final norm and head, which are used together, are gathered with each
    other and stay whole from the forward pass to the end of the backward pass, since the head is called from outside.
    Parameters that are single numbers stay whole, and their gradients are those of this rank alone.

    Args:
        model: its parameters may lie on the meta device and be filled later, through `local.local_tensors`.
        mesh: of a layout of FSDP.
        zero: the level.

    Raises:
        ConfigError: no such level, or data-parallel ranks that do not ascend.
    """
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    if zero not in LEVELS:
        raise ConfigError(f"zero={zero} is not one of {', '.join(map(str, LEVELS))}")
    ranks = mesh.layout.dp_ranks(mesh.here)
    if ranks != sorted(ranks):  # torch sorts the ranks of a group, so that they would hold each other's rows
        raise ConfigError(
            f"the layout {mesh.layout} splits parameters over ranks that must ascend; write them in order"
        )
    over = DeviceMesh.from_group(mesh.dp, _device_type(mesh.dp), mesh_dim_names=("dp",))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    single_numbers = {parameter for parameter in model.parameters() if parameter.dim() == 0}
    for module in (*(model.layers[str(number)] for number in model.block_numbers), model):
        sharded = fully_shard(
            module,
            mesh=over,
            reshard_after_forward=zero == 3 and module is not model,
            mp_policy=policy,
            ignored_params=single_numbers,
        )
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)  # gloo knows no other
    state = _root(model)._get_fsdp_state()
    for hook in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
        hook.remove()  # `run` is the forward pass: around it a second one, of `forward`, would end before the head's
    register_fsdp_forward_method(model, "forward_hidden")
    model.zero = zero  # type: ignore[assignment] # modules declare nothing but tensors and modules


def before_backward(model: nn.Module, *, is_last: bool) -> None:
    """To be called before each backward pass of a step, with whether it is the last one; any network may come."""
    if not is_fsdp(model):
        return
    root, zero = _root(model), vars(model)["zero"]
    root.set_requires_gradient_sync(zero > 1 or is_last)
    root.set_reshard_after_backward(zero == 3 or is_last)


def reshard(model: nn.Module) -> None:
    """Free whole parameters that were gathered; to be called by all ranks or none, outside of passes."""
    if is_fsdp(model):
        for module in _modules(model):
            module.reshard()


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Whole parameters (of this rank's stage and its part of tensor parallelism) within the block, then split again.

    For many forward passes that are not the same number on each rank, as in generation: nothing is said between the
    ranks in the block. All ranks enter it; nothing is done for a network that is whole already, as within another such
    block.
    """
    if not any(hasattr(parameter, "to_local") for parameter in model.parameters()):
        yield
        return
    blocks = [module for module in _modules(model) if module is not cast(object, model)]
    for module in blocks:
        module.set_reshard_after_forward(False, recurse=False)
    for module in _modules(model):
        module.unshard()
    try:
        yield
    finally:
        for module in blocks:
            module.set_reshard_after_forward(vars(model)["zero"] == 3, recurse=False)
        reshard(model)


def _modules(model: nn.Module) -> list[FSDPModule]:
    return [cast("FSDPModule", module) for module in model.modules() if hasattr(module, "reshard")]


def _root(model: nn.Module) -> FSDPModule:
    return cast("FSDPModule", model)


def _device_type(group: Group) -> str:
    return "cuda" if "nccl" in dist.get_backend(group) else "cpu"


def is_fsdp(model: nn.Module) -> bool:
    """Whether FSDP2 holds the parameters."""
    return hasattr(model, "reshard")


def local_tensors(model: nn.Module) -> dict[str, Tensor]:
    """This rank's part of each parameter by name, not a copy; of those of FSDP their rows at rest."""
    if is_fsdp(model):
        for module in model.modules():
            if is_fsdp(module):
                module.reshard()  # type: ignore[operator]
    return {name: to_local(parameter.detach()) for name, parameter in model.named_parameters()}


def to_local(tensor: Any) -> Tensor:
    """What a rank has of a tensor."""
    part = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    assert isinstance(part, Tensor)
    return part
