"""Holds what a `config.json` claims against the tensors beside it, before anything of these sizes is made.

A configuration of ten million layers is a file of some hundred bytes, and a network of it fills any memory. The headers
of the weights are as quick to read. Whether shapes are exactly right is checked when they are loaded. Imports no torch.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from pathlib import Path

from reallm.errors import CheckpointError, ConfigError
from reallm.foreign_files import check_own, reading
from reallm.model.config import ReaLModelConfig

_SIZES = ("vocab_size", "hidden_size")
_SIZES_OF_STANDARD_LAYERS = ("n_q_heads", "n_kv_heads", "head_dim", "intermediate_size")


def check_claims(folder: Path, config: ReaLModelConfig) -> None:
    """Check that each size of an architecture can be found in the weights of a folder, if there are any.

    Raises:
        ConfigError: there are fewer tensors than layers, or no tensor is as large in any dim; names the field.
    """
    shapes: list[tuple[int, ...]] = []
    with suppress(CheckpointError):  # files that cannot be read are reported when they are loaded
        for file in sorted(folder.glob("model*.safetensors")):
            shapes += _shapes(file)
    if not shapes:
        return
    if config.n_layers > len(shapes):
        raise ConfigError(f"n_layers={config.n_layers}, but the checkpoint has only {len(shapes):,} tensors")
    largest = max(chain.from_iterable(shapes), default=0)
    sizes = {name: getattr(config, name) for name in _SIZES}
    if not config.custom_classes:
        sizes |= {name: getattr(config, name) for name in _SIZES_OF_STANDARD_LAYERS}
    if config.learned_positions:
        sizes["max_positions"] = config.max_positions
    if config.moe is not None:
        sizes["moe.n_experts"] = config.moe.n_experts
        if len(config.expert_blocks) == config.n_layers:
            sizes["intermediate_size"] = config.expert_size
    for name, size in sizes.items():
        if size > max(largest, len(shapes)):
            raise ConfigError(f"{name}={size}, but no tensor of the checkpoint has a dim of more than {largest:,}")


def _shapes(file: Path) -> list[tuple[int, ...]]:
    """The shapes of the tensors in a file, of which only the header is read."""
    from safetensors import safe_open

    with reading(file):
        check_own(file)
        with safe_open(file, framework="numpy") as opened:
            return [tuple(opened.get_slice(name).get_shape()) for name in opened.keys()]  # noqa: SIM118 (no mapping)
