"""Checkpoint folders of safetensors files: what is in them, checked before a tensor is read, and the tensors.

Tensors are views of the file, mapped privately: nothing is copied until it is written to, and writing to a tensor never
reaches the file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from reallm.checkpoint.reader import DTYPES, Checkpoint, _some, open_checkpoint
from reallm.errors import CheckpointError
from reallm.hf.checkpoint_folder import read_hf_config
from reallm.hf.conversion.config import has_critic_head
from reallm.hf.conversion.mapping import WeightMapping, weight_mappings
from reallm.hf.conversion.state_dict import refuse_untied_head, unused_names
from reallm.hf.family import HFFamily
from reallm.hf.tables.weights import stored
from reallm.model.config import ReaLModelConfig
from reallm.model.parameter_names import EMBEDDING_WEIGHT, head_weight_name
from reallm.model.parameters import parameter_shapes
from reallm.model.sharding import Box
from reallm.model.transformer import initial_weight


def check_against_config(checkpoint: Checkpoint, family: HFFamily, config: ReaLModelConfig) -> list[WeightMapping]:
    """What to read of a checkpoint, after checking that it fits `config`.

    The head of a critic is not among it if the checkpoint is that of a language model.

    Raises:
        CheckpointError: missing or unexpected tensors, or wrong shapes or types; names them.
        PluginError: the family's table is wrong.
    """
    found = list(weight_mappings(family, config))
    if config.is_critic and not has_critic_head(family, read_hf_config(checkpoint.folder)):
        head = head_weight_name(config)
        found = [holding for holding in found if head not in holding.ours]
    _check_names(checkpoint, family, {name for item in found for name in item.theirs}, unused_names(family, config))
    for holding in found:
        wanted = holding.shape  # the same for all experts
        for theirs in holding.theirs:
            info = checkpoint.infos[theirs]
            if info.dtype not in DTYPES:
                raise CheckpointError(
                    f"{info.file}: tensor '{theirs}' has dtype {info.dtype}; supported are {', '.join(DTYPES)}: "
                    "dequantize or convert the checkpoint"
                )
            if info.shape != wanted:
                raise CheckpointError(
                    f"{info.file}: tensor '{theirs}' has shape {list(info.shape)}, but config.json asks for "
                    f"{list(wanted)}; they belong to different models"
                )
    return found


def read_checkpoint(
    folder: str | Path, family: HFFamily, config: ReaLModelConfig, wanted: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """Whole parameters by our names, in the types they are stored in; see `read_boxes`.

    Args:
        folder: with `config.json` and safetensors files.
        family: whose names the tensors have.
        config: the architecture that they must fit.
        wanted: our names of the parameters to read; None reads all. A critic's head that the checkpoint does not have,
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
    """Parts of the parameters in a checkpoint."""

    tensors: dict[str, Tensor]
    """By our names."""
    bytes_read: int
    """Of the files' tensors: those of the parts, each once."""
    stored_dtypes: frozenset[torch.dtype]
    """The types in which the checkpoint has the parameters, these and all others."""


def read_boxes(
    folder: str | Path,
    family: HFFamily,
    config: ReaLModelConfig,
    boxes: Mapping[str, Box],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    onto: Mapping[str, Tensor] | None = None,
    seed: int | None = None,
) -> LoadedBoxes:
    """A part of each of some parameters; nothing else in the files is read but their headers.

    On the CPU and in the stored type, a part that lies together in the file is a view of it (see the top of this
    module), so that it is read when it is used. A disk reads whole pages: where a part takes some columns of every
    row, what passes through the page cache may be more.

    Args:
        folder: with `config.json` and safetensors files.
        family: whose names the tensors have.
        config: the architecture that they must fit.
        boxes: our names of the parameters and which part of each, in coordinates of the whole.
        dtype: of the results; None: that of the file.
        device: of the results.
        onto: tensors, of the shapes of the parts, that take them; they are then the result, as they are.
        seed: from which a critic's head is drawn that the checkpoint does not have, because it is that of a language
            model; None leaves it out.

    Raises:
        CheckpointError: what is wrong with the folder, and what to do about it. What the headers tell is found by all
            who read the folder, whatever they read of it.
        PluginError: the family's table is wrong.
    """
    checkpoint = with_prefix(open_checkpoint(folder), family)
    tensors, bytes_read, dtypes = dict[str, Tensor](), 0, set[torch.dtype]()

    def put(name: str, part: Tensor) -> None:
        if onto is None:
            tensors[name] = part.to(device, dtype)
        else:
            with torch.no_grad():
                tensors[name] = onto[name].copy_(part)

    found = check_against_config(checkpoint, family, config)
    if EMBEDDING_WEIGHT in boxes:
        bytes_read += _refuse_untied_head(checkpoint, family, config, boxes[EMBEDDING_WEIGHT])
    for holding in found:
        dtypes |= {DTYPES[checkpoint.infos[theirs].dtype] for theirs in holding.theirs}
        their_tensor = partial(_numbered, checkpoint, holding.theirs)
        for name in holding.ours:
            if name in boxes:
                part = holding.part(name, boxes[name], their_tensor)
                put(name, part.tensor)
                bytes_read += part.bytes_read
    for name in boxes.keys() - tensors.keys():  # at most the scalar head of a new critic
        if seed is not None:
            whole = initial_weight(name, torch.Size(parameter_shapes(config)[name]), config, seed)
            put(name, whole[boxes[name].slices])
    return LoadedBoxes(tensors, bytes_read, frozenset(dtypes))


def with_prefix(checkpoint: Checkpoint, family: HFFamily) -> Checkpoint:
    """The checkpoint with the beginning of names that some of the family lack."""
    prefix = family.weights.optional_prefix
    if not prefix or any(name.startswith(prefix) for name in checkpoint):
        return checkpoint
    # the head stands beside what the prefix is the name of
    own = {
        stored(theirs).name for part in (family.weights.head, family.weights.critic_head) for theirs in part.values()
    }
    beside = tuple(name for name in own if not name.startswith(prefix))
    names = {name if name.startswith(beside) else prefix + name: name for name in checkpoint}
    infos = {long: checkpoint.infos[name] for long, name in names.items()}
    return Checkpoint(checkpoint.folder, infos, checkpoint._files, names)


def _check_names(checkpoint: Checkpoint, family: HFFamily, wanted: set[str], unused: set[str]) -> None:
    missing = [name for name in wanted if name not in checkpoint]
    extra = [
        name for name in checkpoint if name not in wanted and name not in unused and not family.weights.is_ignored(name)
    ]
    faults = []
    if missing:
        faults.append(f"lacks {_some(sorted(missing))}")
    if extra:
        faults.append(f"has {_some(sorted(extra))} too many")
    if faults:
        raise CheckpointError(
            f"{checkpoint.folder}: compared with config.json the checkpoint {' and '.join(faults)}; "
            "take both from one model"
        )


def _numbered(checkpoint: Checkpoint, names: tuple[str, ...], item: int) -> Tensor:
    return checkpoint[names[item]]


def _refuse_untied_head(checkpoint: Checkpoint, family: HFFamily, config: ReaLModelConfig, box: Box) -> int:
    try:
        return refuse_untied_head(family, checkpoint, config, box)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.folder}: {error}") from error
