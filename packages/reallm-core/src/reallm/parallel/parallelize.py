"""Turns a network on the meta device into this rank's part of a layout, and fills it with values.

model = Transformer(config, local_layers(config, mesh))  # on the meta device
parallelize(model, mesh, zero=3)  # tensor parallelism, then the pipeline stage, then FSDP
load_local(model, tensors, device)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import layer_number
from reallm.model.sharding import Box
from reallm.model.transformer import Transformer
from reallm.notices import notify_once
from reallm.parallel.mesh import Mesh
from reallm.parallel.sharding import check_fits, stage_layers, tp_boxes
from reallm.plugins.checked import is_split_checked


def local_layers(config: ReaLModelConfig, mesh: Mesh) -> range:
    """The layers of this rank's stage; none if the rank is not in the layout."""
    return stage_layers(config, mesh.layout.pp)[mesh.coordinate.pp] if mesh.is_member else range(0)


def parallelize(model: Transformer, mesh: Mesh, *, zero: int, sequence_parallel: bool = False) -> None:
    """Turn a network with the layers of this rank's stage, on the meta device, into this rank's part of a layout.

    Args:
        model: `Transformer(config, local_layers(config, mesh))`.
        mesh: the layout.
        zero: ZeRO level of a layout with FSDP; see `apply_fsdp`.
        sequence_parallel: whether tensor-parallel ranks also split the tokens, outside of the layers that they split.

    Raises:
        ConfigError: the layout does not fit the model.
    """
    check_fits(model.config, mesh.layout)
    if not mesh.is_member:
        return
    if mesh.layout.tp > 1:
        from reallm.parallel.tensor_parallel.apply import apply_tensor_parallel, check_splits
        from reallm.parallel.tensor_parallel.mappings import GroupPeers

        mesh.layout.check_ascending(mesh.layout.tp_ranks(mesh.coordinate))
        boxes = tp_boxes(model.config, mesh.layout, mesh.coordinate.pp)
        shards, splits = model.parameter_shards(), model.module_splits()
        check_splits(model, shards, splits)
        notify_of_unchecked_layers(model.config)
        peers = GroupPeers(mesh.tp)
        apply_tensor_parallel(model, peers, boxes, shards, splits, sequence_parallel=sequence_parallel)
    if mesh.layout.pp > 1:
        from reallm.parallel.pipeline_parallel.stage import make_stage

        make_stage(model, mesh)
    if mesh.layout.fsdp:
        from reallm.parallel.fsdp import apply_fsdp

        apply_fsdp(model, mesh, zero=zero)


def notify_of_unchecked_layers(config: ReaLModelConfig) -> None:
    """Say once that a family's own layers have never been checked: a wrong declaration raises no error in training."""
    for reference in config.custom_classes:
        if not is_split_checked(reference):
            notify_once(
                f"tensor parallelism splits {reference} as it declares, which no check has verified with its present "
                "code; wrong gradients would not be noticed: run `reallm plugins check` for its family"
            )


def load_local(model: Transformer, tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Replace the meta parameters by tensors, which are copied with FSDP and otherwise used without a copy.

    Args:
        model: a network after `parallelize`.
        tensors: this rank's part of each parameter, by name.
        device: device of the parameters that FSDP shards.
    """
    from reallm.parallel.fsdp import is_fsdp, local_tensors

    if not is_fsdp(model):
        model.load_state_dict(dict(tensors), assign=True)
        return
    model.to_empty(device=device)
    with torch.no_grad():
        for name, tensor in local_tensors(model).items():
            tensor.copy_(tensors[name])


def init_local_weights(config: ReaLModelConfig, boxes: Mapping[str, Box], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Initial values of boxes of parameters, float32 on the CPU, cut from the whole network's values for this seed.

    One layer is initialised at a time.
    """
    for layer in sorted({layer_number(name) for name in boxes}):
        whole = Transformer(config, range(layer, layer + 1))
        whole.init_weights(seed)
        for name, parameter in whole.named_parameters():
            if name in boxes:
                yield name, parameter.detach()[boxes[name].slices].clone()
