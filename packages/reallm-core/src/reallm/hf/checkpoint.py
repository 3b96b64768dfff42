"""Checkpoint folders of safetensors files: what is in them, checked before a tensor is read, and the tensors.

Tensors are views of the file, mapped privately: nothing is copied until it is written to, and writing to a tensor never
reaches the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from reallm.errors import CheckpointError
from reallm.hf.config_io import read_config, saved_as_critic
from reallm.hf.family import HFFamily
from reallm.hf.file_names import INDEX_NAME, WEIGHTS_NAME
from reallm.hf.holdings import Holding, holdings, parameter_shapes
from reallm.hf.weight_table import stored
from reallm.hf.weights import EMBEDDING, refuse_untied_head, unused_names
from reallm.model.box import Box
from reallm.model.config import ReaLModelConfig
from reallm.model.transformer import fresh_weight

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of tensors that are read, by their names in safetensors files."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_CONVERT = (
    "convert them once, on a machine that trusts their source: "
    "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder) of transformers"
)


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says of a tensor. `dtype` is the name safetensors gives it, such as "BF16"."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a folder under their own names; each is a view of its file, read when it is used."""

    folder: Path
    infos: Mapping[str, TensorInfo]
    _files: Mapping[Path, Any] = field(repr=False)
    _spellings: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Names that are others in the files."""

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._files[self.infos[name].file].get_tensor(self._spellings.get(name, name))
        assert isinstance(tensor, Tensor)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)

    def __len__(self) -> int:
        return len(self.infos)


def open_checkpoint(folder: str | Path) -> Checkpoint:
    """Map the safetensors files of a folder; reads their headers only.

    Raises:
        CheckpointError: no safetensors files, a broken one, or an index that does not fit them.
    """
    folder = Path(folder)
    # As in transformers, a single file comes before an index.
    if (folder / WEIGHTS_NAME).exists():
        indexed: dict[str, str] = {}
        file_names = [WEIGHTS_NAME]
    elif (folder / INDEX_NAME).exists():
        indexed = _read_index(folder)
        file_names = list(dict.fromkeys(indexed.values()))
    else:
        raise CheckpointError(_why_no_weights(folder))
    files = {folder / name: _open(folder / name) for name in file_names}
    headers = {path: _infos(path, file) for path, file in files.items()}
    infos = {name: info for header in headers.values() for name, info in header.items()}
    for name, file_name in indexed.items():
        if name not in headers[folder / file_name]:
            raise CheckpointError(f"{folder / INDEX_NAME}: tensor '{name}' is not in '{file_name}'; copy both again")
        infos[name] = headers[folder / file_name][name]
    return Checkpoint(folder, infos, files)


def plan_reading(checkpoint: Checkpoint, family: HFFamily, config: ReaLModelConfig) -> list[Holding]:
    """What to read of a checkpoint, after checking that it fits `config`.

    The head of a critic is not among it if the checkpoint is that of a language model.

    Raises:
        CheckpointError: missing or unexpected tensors, or wrong shapes or types; names them.
        PluginError: the family's table is wrong.
    """
    found = list(holdings(family, config))
    if config.is_critic and not saved_as_critic(family, read_config(checkpoint.folder)):
        head = f"layers.{config.n_layers + 1}.out.weight"
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
class BoxesRead:
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
) -> BoxesRead:
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

    found = plan_reading(checkpoint, family, config)
    if EMBEDDING in boxes:
        bytes_read += _refuse_untied_head(checkpoint, family, config, boxes[EMBEDDING])
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
            whole = fresh_weight(name, torch.Size(parameter_shapes(config)[name]), config, seed)
            put(name, whole[boxes[name].slices])
    return BoxesRead(tensors, bytes_read, frozenset(dtypes))


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


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor -> name of the file that holds it; the names lead to existing files of this folder and nowhere else."""
    path = folder / INDEX_NAME
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not an index with a weight_map ({error!r}); copy it again") from error
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} has no tensors in its weight_map; copy it again")
    for name, file_name in weight_map.items():
        # Links in the folder are followed (the hub's cache is made of them), paths in the index are not.
        plain = isinstance(file_name, str) and file_name not in ("", ".", "..") and not set(file_name) & set("/\\\0")
        if not plain:
            raise CheckpointError(
                f"{path}: tensor '{name}' is said to be in {file_name!r}, outside of the folder: refused"
            )
        if not file_name.endswith(".safetensors"):
            raise CheckpointError(f"{path}: tensor '{name}' is in '{file_name}', not a safetensors file; {_CONVERT}")
    missing = sorted({file_name for file_name in weight_map.values() if not (folder / file_name).exists()})
    if missing:
        raise CheckpointError(f"{path} names {_some(missing)}, not in the folder; download or copy the rest")
    return weight_map


def _why_no_weights(folder: Path) -> str:
    pickles = [file.name for pattern in _PICKLES for file in sorted(folder.glob(pattern))]
    if pickles:
        return f"{folder} holds weights only as pickle files ({_some(pickles)}), which can run code; {_CONVERT}"
    return f"{folder} holds neither {WEIGHTS_NAME} nor {INDEX_NAME}: it is not a complete checkpoint"


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is truncated or damaged ({error}); download or copy it again") from error


def _infos(path: Path, file: Any) -> dict[str, TensorInfo]:
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    return {name: TensorInfo(path, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}


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


def _some(names: list[str]) -> str:
    """A few of many names: `'a', 'b', 'c' and 7 more`."""
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
