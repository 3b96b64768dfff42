"""Reads parameters from a checkpoint folder of safetensors files, which is checked before a tensor is read.

Tensors are views of the memory-mapped file (copy-on-write): nothing is copied until it is written to, and writing to a
tensor never reaches the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from reallm.checkpoint.names import with_family_names
from reallm.checkpoint.new_rows import with_new_rows
from reallm.checkpoint.reader import DTYPES, Checkpoint, open_checkpoint
from reallm.errors import CheckpointError, quoted
from reallm.hf.checkpoint_folder import read_hf_config
from reallm.hf.conversion.config import has_critic_head
from reallm.hf.conversion.mapping import WeightMapping, weight_mappings
from reallm.hf.conversion.state_dict import check_tied_head, head_names, unused_head_names
from reallm.hf.family import HFFamily
from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import EMBEDDING_WEIGHT, head_weight_name
from reallm.model.parameters import parameter_shapes
from reallm.model.sharding import Box
from reallm.model.transformer import initial_weight


def read_checkpoint(
    folder: str | Path, family: HFFamily, config: ReaLModelConfig, wanted: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Read whole parameters under our names, in their stored dtypes; see `read_boxes`.

    Args:
        folder: folder with `config.json` and safetensors files.
        family: family whose names the tensors have.
        config: the architecture that they must fit.
        wanted: names of the parameters to read; None reads all. A critic's head that the checkpoint does not have,
            because it is that of a language model, is left out.

    Raises:
        CheckpointError: what is wrong with the folder, and what to do about it.
        PluginError: the family's table is wrong.
    """
    shapes = parameter_shapes(config)
    chosen = shapes if wanted is None else shapes.keys() & set(wanted)
    return read_boxes(folder, family, config, {name: Box.whole(shapes[name]) for name in chosen}).tensors


@dataclass(frozen=True)
class LoadedBoxes:
    """Boxes of a checkpoint's parameters."""

    tensors: dict[str, Tensor]
    """Tensors by our parameter names."""
    bytes_read: int
    """Bytes of the files' tensors that the boxes need, each counted once."""
    stored_dtypes: frozenset[torch.dtype]
    """The dtypes of all parameters in the checkpoint, read or not."""


def read_boxes(
    folder: str | Path,
    family: HFFamily,
    config: ReaLModelConfig,
    boxes: Mapping[str, Box],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    out: Mapping[str, Tensor] | None = None,
    seed: int | None = None,
) -> LoadedBoxes:
    """Read one box of each given parameter; of the rest of the files only headers are read.

    Boxes may reach beyond the rows of the checkpoint, if the vocabulary is to grow: the rest is drawn (`new_rows`).

    On the CPU and in the stored dtype, a box that is contiguous in the file is a view of it (see the module docstring),
    read when it is used. A disk reads whole pages: if a box has some columns of every row, more than `bytes_read` may
    pass through the page cache.

    Args:
        folder: folder with `config.json` and safetensors files.
        family: family whose names the tensors have.
        config: the architecture that they must fit.
        boxes: parameter -> the box of it to read, in coordinates of the whole parameter.
        dtype: dtype of the results; None: the dtype in the file.
        device: device of the results.
        out: tensors of the boxes' shapes to copy into, which keep their dtype and device, and are then returned.
        seed: seed of what the checkpoint lacks: rows of a larger vocabulary, and a critic's head if it is a language
            model's. None leaves that head out.

    Raises:
        CheckpointError: the folder cannot be read; says what is wrong and what to do. Errors in headers are found by
            every rank that reads the folder, whichever boxes it reads.
        PluginError: the family's table is wrong.
    """
    checkpoint = with_family_names(open_checkpoint(folder), family)
    mappings = check_against_config(checkpoint, family, config)
    shapes = parameter_shapes(config)
    tensors, bytes_read = dict[str, Tensor](), 0

    def put(name: str, tensor: Tensor) -> None:
        if out is None:
            tensors[name] = tensor.to(device, dtype)
        else:
            with torch.no_grad():
                tensors[name] = out[name].copy_(tensor)

    if EMBEDDING_WEIGHT in boxes:
        bytes_read += _check_tied_head(checkpoint, family, config, boxes[EMBEDDING_WEIGHT])
    for mapping in mappings:
        hf_tensor = partial(_nth_tensor, checkpoint, mapping.hf_names)
        for name in mapping.parameters:
            if name in boxes:
                whole = Box.whole(shapes[name])
                tensor, n_bytes = mapping.read_box(name, boxes[name] & whole, hf_tensor)
                if boxes[name].stops[:1] > whole.stops[:1] and boxes[name].numel:
                    assert seed is not None, "a vocabulary grows with the values of a seed"
                    present = mapping.read_box(name, whole, hf_tensor)
                    tensor, n_bytes = with_new_rows(tensor, boxes[name], present.tensor, name, seed), present.bytes_read
                put(name, tensor)
                bytes_read += n_bytes
    for name in boxes.keys() - tensors.keys():  # at most the scalar head of a new critic
        if seed is not None:
            head = initial_weight(name, torch.Size(shapes[name]), config, seed)
            put(name, head[boxes[name].slices])
    dtypes = {DTYPES[checkpoint.infos[name].dtype] for mapping in mappings for name in mapping.hf_names}
    return LoadedBoxes(tensors, bytes_read, frozenset(dtypes))


def check_headers(folder: str | Path, family: HFFamily, config: ReaLModelConfig) -> None:
    """Check that a checkpoint fits `config`, by the headers of its files: no tensor is read.

    Raises:
        CheckpointError: the folder cannot be read, or tensors are missing or have other shapes; names them.
    """
    check_against_config(with_family_names(open_checkpoint(folder), family), family, config)


def check_against_config(checkpoint: Checkpoint, family: HFFamily, config: ReaLModelConfig) -> list[WeightMapping]:
    """Check that a checkpoint fits `config`, by its headers, and return the mappings to read.

    A critic's head is not among them if the checkpoint is a language model's.

    Raises:
        CheckpointError: missing or unexpected tensors, or wrong shapes or dtypes; names them.
        PluginError: the family's table is wrong.
    """
    mappings = list(weight_mappings(family, config))
    if config.is_critic and not has_critic_head(family, read_hf_config(checkpoint.folder)):
        head = head_weight_name(config)
        mappings = [mapping for mapping in mappings if head not in mapping.parameters]
    expected = {name for mapping in mappings for name in mapping.hf_names}
    _check_names(checkpoint, family, expected, unused_head_names(family, config))
    for mapping in mappings:
        shape = mapping.hf_shape  # the same for all experts
        for name in mapping.hf_names:
            info = checkpoint.infos[name]
            if info.dtype not in DTYPES:
                raise CheckpointError(
                    f"{info.file}: tensor '{name}' has dtype {info.dtype}; supported are {', '.join(DTYPES)}: "
                    "dequantize or convert the checkpoint"
                )
            if info.shape != shape:
                raise CheckpointError(
                    f"{info.file}: tensor '{name}' has shape {list(info.shape)}, but config.json asks for "
                    f"{list(shape)}; they belong to different models"
                )
    return mappings


def _check_names(checkpoint: Checkpoint, family: HFFamily, expected: Set[str], unused: Set[str]) -> None:
    missing = sorted(expected - checkpoint.keys())
    if missing and expected - set(missing) == expected - head_names(family, is_critic=False):
        raise CheckpointError(
            f"{checkpoint.folder} has no output head ({quoted(missing)} is missing); take a checkpoint with one, or "
            "make a critic from it (is_critic=True)"
        )
    extra = sorted(name for name in checkpoint.keys() - expected - unused if not family.weights.is_ignored(name))
    faults = []
    if missing:
        faults.append(f"lacks {quoted(missing, 3)}")
    if extra:
        faults.append(f"has the unexpected {'tensor' if len(extra) == 1 else 'tensors'} {quoted(extra, 3)}")
    if faults:
        raise CheckpointError(
            f"{checkpoint.folder}: compared with config.json the checkpoint {' and '.join(faults)}; "
            "take both from the same model"
        )


def _nth_tensor(checkpoint: Checkpoint, names: tuple[str, ...], index: int) -> Tensor:
    return checkpoint[names[index]]


def _check_tied_head(checkpoint: Checkpoint, family: HFFamily, config: ReaLModelConfig, box: Box) -> int:
    try:
        return check_tied_head(family, checkpoint, config, box)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.folder}: {error}") from error
