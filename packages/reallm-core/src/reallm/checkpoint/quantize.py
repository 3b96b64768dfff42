"""Quantizes weights of a checkpoint for the layers that hold them in few bits."""

from __future__ import annotations

from pathlib import Path

import torch

from reallm.checkpoint.finite import check_finite
from reallm.checkpoint.load import read_boxes
from reallm.hf.family import HFFamily
from reallm.model.config import ReaLModelConfig
from reallm.model.products import nf4
from reallm.model.quantized import quantized_layers
from reallm.model.sharding import Box
from reallm.model.transformer import Transformer


def load_quantized(
    network: Transformer,
    folder: Path,
    family: HFFamily,
    config: ReaLModelConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Set the quantized weights of a network, each moved to the device and quantized there after the other.

    Args:
        network: a whole network.
        folder: the checkpoint, of float weights.
        family: its family.
        config: its configuration, without adapters.
        dtype: dtype in which weights are quantized and multiplied.
        device: device of the network.

    Returns:
        Number of bytes read.

    Raises:
        CheckpointError: a weight is not finite; names it.
        ConfigError: the device cannot hold such weights, or the dtype is another one.
    """
    quantize, layers = nf4.nf4_quantizer(device, dtype), quantized_layers(network)
    boxes = {name: Box.whole((layer.out_features, layer.in_features)) for name, layer in layers.items()}
    read = read_boxes(folder, family, config, boxes)  # views of the mapped files
    for name, layer in layers.items():
        weight = read.tensors.pop(name).to(device, dtype)
        check_finite(folder, family, config, {name: weight})
        layer.quantized = quantize(weight)
    return read.bytes_read
