"""From a network on the meta device to what one rank of a layout has of it: split, staged, sharded, and filled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import layer_number
from reallm.model.sharding import Box
from reallm.model.transformer import Transformer
from reallm.parallel.mesh import Mesh
from reallm.parallel.sharding import check_fits, local_boxes, stage_layers

NO_LAYERS = range(0)


def local_layers(config: ReaLModelConfig, mesh: Mesh) -> range:
    """The layers of this rank's stage; none outside of the layout."""
    if mesh.place is None:
        return NO_LAYERS
    return stage_layers(config, mesh.layout.pp)[mesh.place.pp]


def boxes_here(config: ReaLModelConfig, mesh: Mesh) -> Mapping[str, Box]:
    """Parameter -> the part that this rank holds."""
    return local_boxes(config, mesh.layout, mesh.rank)


def parallelize(model: Transformer, mesh: Mesh, *, zero: int, sequence_parallel: bool = False) -> None:
    """Let a network that has the layers of this rank's stage, on the meta device, be this rank's part of a layout.

    Args:
        model: `Transformer(config, local_layers(config, mesh))`.
        mesh: the layout.
        zero: what FSDP2 frees between micro-batches, where the layout is one of FSDP; see `apply_fsdp`.
        sequence_parallel: whether ranks of tensor parallelism have a part of the tokens each between their layers.

    Raises:
        ConfigError: the layout does not fit the model.
    """
    check_fits(model.config, mesh.layout)
    if mesh.place is None:
        return
    if mesh.layout.tp > 1:
        from reallm.parallel.tensor_parallel.apply import apply_tensor_parallel

        apply_tensor_parallel(model, mesh, sequence_parallel=sequence_parallel)
    if mesh.layout.pp > 1:
        from reallm.parallel.pipeline_parallel.runner import make_stage

        make_stage(model, mesh)
    if mesh.layout.fsdp:
        from reallm.parallel.fsdp import apply_fsdp

        apply_fsdp(model, mesh, zero=zero)


def load_local(model: Transformer, parts: Mapping[str, Tensor], device: torch.device) -> None:
    """Put tensors in place of the meta parameters; they are used as they are where FSDP does not hold them.

    Args:
        model: after `spread`.
        parts: this rank's part of each parameter, by name.
        device: where FSDP's parameters are to lie.
    """
    from reallm.parallel.fsdp import is_fsdp, local_tensors

    if not is_fsdp(model):
        model.load_state_dict(dict(parts), assign=True)
        return
    model.to_empty(device=device)
    with torch.no_grad():
        for name, tensor in local_tensors(model).items():
            tensor.copy_(parts[name])


def init_local_weights(config: ReaLModelConfig, boxes: Mapping[str, Box], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Initial values of parts of parameters, float32 on the CPU: those that the whole network gets from this seed.

    One layer is made at a time.
    """
    for layer in sorted({layer_number(name) for name in boxes}):
        whole = Transformer(config, range(layer, layer + 1))
        whole.init_weights(seed)
        for name, parameter in whole.named_parameters():
            if name in boxes:
                yield name, parameter.detach()[boxes[name].slices].clone()
