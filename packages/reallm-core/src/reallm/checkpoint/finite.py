"""Finds weights of a checkpoint that are NaN or infinite, and names the tensors of the files that hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from reallm.checkpoint.names import with_family_names
from reallm.checkpoint.reader import Checkpoint, open_checkpoint
from reallm.errors import CheckpointError, counted
from reallm.hf.conversion.mapping import weight_mappings
from reallm.hf.family import HFFamily
from reallm.model.config import ReaLModelConfig


def nonfinite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with a value that is NaN or infinite.

    Each tensor is read once, as fast as memory allows; of all tensors on a device together, one result is fetched.
    """
    extremes: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            # NaN if any value is; much faster than `isfinite`, which writes a boolean for each
            extremes.setdefault(tensor.device, {})[name] = torch.stack(torch.aminmax(tensor.detach())).float()
    return [
        name
        for of_device in extremes.values()
        for name, finite in zip(
            of_device, torch.stack([*of_device.values()]).isfinite().all(dim=-1).tolist(), strict=True
        )
        if not finite
    ]


def check_finite(folder: Path, family: HFFamily, config: ReaLModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Check that parameters that were read from a checkpoint are finite.

    Args:
        folder: the checkpoint.
        family: family whose names its tensors have.
        config: its configuration.
        tensors: parameters, or this rank's boxes of them, all of one dtype.

    Raises:
        CheckpointError: a tensor of the checkpoint has values that are NaN or infinite, or too large for the dtype of
            `tensors`; names the tensor and its file.
    """
    names = set(nonfinite_names(tensors))
    if not names:
        return
    dtype = next(iter(tensors.values())).dtype
    checkpoint = with_family_names(open_checkpoint(folder), family)
    culprits = [
        name
        for mapping in weight_mappings(family, config)
        if names & set(mapping.parameters)
        for name in mapping.hf_names
        if name in checkpoint and not checkpoint[name].to(dtype).isfinite().all()
    ]
    if culprits:  # otherwise the parameters have changed since they were read
        raise _error(checkpoint, culprits, dtype)


def check_files_finite(folder: Path, family: HFFamily, config: ReaLModelConfig) -> None:
    """Check that the tensors of a checkpoint are finite, without loading a model; reads its files once.

    Raises:
        CheckpointError: a tensor has values that are NaN or infinite; names it and its file.
    """
    checkpoint = with_family_names(open_checkpoint(folder), family)
    names = [name for mapping in weight_mappings(family, config) for name in mapping.hf_names if name in checkpoint]
    culprits = [name for name in names if nonfinite_names({name: checkpoint[name]})]
    if culprits:
        raise _error(checkpoint, culprits, checkpoint[culprits[0]].dtype)


def _error(checkpoint: Checkpoint, culprits: Sequence[str], dtype: torch.dtype) -> CheckpointError:
    """The error about tensors that are not finite in a dtype."""
    tensor, file = checkpoint[culprits[0]], checkpoint.infos[culprits[0]].file
    n_bad = int((~tensor.isfinite()).sum())
    more = f", and {counted(len(culprits) - 1, 'more tensor')} as well" if len(culprits) > 1 else ""
    if not n_bad:
        return CheckpointError(
            f"{file}: tensor '{culprits[0]}' has values up to {tensor.abs().max().item():.3g}{more}, too large for "
            f"{str(dtype).removeprefix('torch.')}; load it as bfloat16 or float32"
        )
    return CheckpointError(
        f"{file}: tensor '{culprits[0]}' has {n_bad:,} of {tensor.numel():,} values that are NaN or infinite{more}; "
        "download or copy the checkpoint again, or take an earlier one"
    )
