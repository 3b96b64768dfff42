"""One checkpoint, written by all ranks of a layout together, into a folder that all of them see.

Each rank is the writer of some of the tensors, nearly the same bytes each, and of files of its own; the first one adds
the index and the small files. A file's tensors are put together from the parts of all ranks just before it is written,
so that no rank holds more than one file beside its own part of the model.

The folder must lie on a file system that all ranks share. It gets its name when all have written; if one cannot, what
was there before stays, and all ranks raise the same error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from reallm.atomic_files import AnyPath, atomic_folder
from reallm.checkpoint.file_plan import File, assign_writers, plan_files, write_rounds
from reallm.checkpoint.save import ExportOptions, is_no_part, write_file, write_index, write_small_files
from reallm.errors import DataError
from reallm.hf.conversion.mapping import weight_mappings
from reallm.hf.family import HFFamily
from reallm.model.config import ReaLModelConfig
from reallm.model.parameters import parameter_infos
from reallm.model.sharding import Box, Shape
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import all_gather_json, fail_together, is_leader
from reallm.parallel.sharding import local_boxes
from reallm.reallocation.gather import Boxes, gathered


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor that is written, and what it is made of."""

    name: str
    shape: Shape
    dtype: torch.dtype
    parts: tuple[tuple[str, Box], ...]
    """Names under which ranks have parts, and which part of each is needed."""
    join: Callable[[Sequence[Tensor]], Tensor]
    """Makes it from these."""

    @property
    def n_bytes(self) -> int:
        """Its size."""
        return Box.whole(self.shape).numel * self.dtype.itemsize


@dataclass(frozen=True)
class SpreadExport(ExportOptions):
    """What a checkpoint folder is to hold of a model that is spread over the ranks of a layout; see `Export`.

    Raises:
        ConfigError: `max_shard_size` is no size.
    """

    hf_config: Mapping[str, Any]
    """Content of `config.json`."""
    family: HFFamily
    """In which it is saved."""
    config: ReaLModelConfig
    """Of the whole model."""
    mesh: Mesh
    """Its layout."""
    local: Mapping[str, Tensor]
    """This rank's parts of the parameters, those of `placement`; not copies."""

    def write_into(self, folder: Path) -> None:
        """Write the files into an existing folder; all ranks of the layout call it, and fail together.

        Raises:
            ReallmError: what went wrong and on which rank.
        """
        with fail_together(self.mesh):
            if is_leader(self.mesh):
                write_small_files(folder, self.hf_config, carry_from=self.carry_from, tokenizer=self.tokenizer)
        held = {rank: local_boxes(self.config, self.mesh.layout, rank) for rank in self.mesh.layout.ranks}
        dtypes = _dtypes(self.mesh, {name: self.dtype or tensor.dtype for name, tensor in self.local.items()})
        written = [
            TensorToWrite(
                name,
                holding.shape,
                dtypes[holding.ours[0]],
                tuple(zip(holding.ours, holding.boxes_in(item), strict=True)),
                holding.joined,
            )
            for holding in weight_mappings(self.family, self.config)
            for item, name in enumerate(holding.theirs)
        ]
        write_tensors_together(folder, self.mesh, written, held, self.local, max_shard_size=self.max_shard_size)


def write_together(folder: AnyPath, export: SpreadExport) -> None:
    """Write a checkpoint; killed at any moment, `folder` holds what it held before or the whole new checkpoint.

    All ranks of the layout call it; others have nothing to do.

    Raises:
        ReallmError: it cannot be written; the same on all ranks.
    """
    if export.mesh.place is None:
        return
    with folder_together(folder, export.mesh, keep=is_no_part) as new:
        export.write_into(new)


@contextmanager
def folder_together(path: AnyPath, mesh: Mesh | None, *, keep: Callable[[str], bool] | None = None) -> Iterator[Path]:
    """`atomic_folder` for all ranks of a layout, which write into the same new folder.

    Errors in the block must be those of all ranks, as those of `together` are.

    Raises:
        DataError: the folder cannot be made or get its name; the same on all ranks.
    """
    with ExitStack() as stack:  # of the first rank: in the end the folder gets its name, or is removed
        with fail_together(mesh):
            new = stack.enter_context(atomic_folder(path, keep=keep)) if is_leader(mesh) else None
        if mesh is None or mesh.layout.size == 1:
            assert new is not None
            yield new
        else:
            yield _seen_by_all(new, mesh)
        with fail_together(mesh):
            stack.close()


def _seen_by_all(new: Path | None, mesh: Mesh) -> Path:
    """The folder of the first rank, which the others are to see too."""
    first = mesh.layout.ranks[0]
    folder = Path(all_gather_json(new and str(new), mesh.all)[first])
    with fail_together(mesh):
        if not folder.is_dir():
            raise DataError(
                f"{folder.parent} is another folder here than on rank {first}; checkpoints of several ranks need a "
                "file system that all of them share"
            )
    return folder


def save_optimizer_tensors(folder: Path, mesh: Mesh, config: ReaLModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Write what ranks keep beside the parameters, such as the moments of an optimizer, whole; all ranks call it.

    Args:
        folder: exists, and is the same for all ranks.
        mesh: the layout.
        config: of the whole model.
        tensors: of this rank, `<anything>/<parameter>` or `<anything>/<parameter>/<anything>`: of each in the shape of
            the part of the parameter that is here, or a single number, the same wherever it is.

    Raises:
        ReallmError: what went wrong and on which rank.
    """
    own = {name: [str(tensor.dtype), tensor.dim() == 0] for name, tensor in tensors.items()}
    said = all_gather_json(own, mesh.all)
    about = {name: each for of_rank in said.values() for name, each in of_rank.items()}
    infos = {info.name: info for info in parameter_infos(config)}
    wholes = {
        name: Box((), ()) if is_number else Box.whole(infos[parameter_of(name)].shape)
        for name, (_, is_number) in about.items()
    }
    places = {rank: local_boxes(config, mesh.layout, rank) for rank in mesh.layout.ranks}
    held = {
        rank: {name: wholes[name] if about[name][1] else places[rank][parameter_of(name)] for name in of_rank}
        for rank, of_rank in said.items()
    }
    written = [
        TensorToWrite(name, wholes[name].shape, _dtype(dtype), ((name, wholes[name]),), lambda parts: parts[0])
        for name, (dtype, _) in about.items()
    ]
    if written:
        write_tensors_together(folder, mesh, written, held, tensors)


def parameter_of(name: str) -> str:
    """The parameter in the name of a companion."""
    return name.split("/")[1]


def _dtypes(mesh: Mesh, of_stage: Mapping[str, torch.dtype]) -> dict[str, torch.dtype]:
    """What the stages know of their own parameters."""
    if mesh.layout.pp == 1:
        return dict(of_stage)
    said = all_gather_json({name: str(dtype) for name, dtype in of_stage.items()}, mesh.pp)
    return {name: _dtype(dtype) for each in said.values() for name, dtype in each.items()}


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."))
    assert isinstance(dtype, torch.dtype)
    return dtype


def write_tensors_together(
    folder: Path,
    mesh: Mesh,
    written: Sequence[TensorToWrite],
    held: Boxes,
    local: Mapping[str, Tensor],
    *,
    max_shard_size: int | str = "5GB",
) -> None:
    """Write tensors as safetensors files with an index; all ranks of the layout call it.

    Args:
        folder: exists, and is the same for all ranks.
        mesh: the layout.
        written: the tensors, the same for all ranks.
        held: which parts ranks have of what they are made of.
        local: this rank's parts.
        max_shard_size: see `SpreadExport`.

    Raises:
        ReallmError: what went wrong and on which rank.
    """
    by_name = {each.name: each for each in written}
    sizes = {name: each.n_bytes for name, each in by_name.items()}
    near = {
        name: [rank for rank in mesh.layout.ranks if any(part in held[rank] for part, _ in each.parts)]
        for name, each in by_name.items()
    }
    files = plan_files(assign_writers(sizes, near, mesh.layout.ranks), sizes, max_shard_size)
    for at_once in write_rounds(files):
        mine = next((file for file in at_once if file.writer == mesh.rank), None)
        tensors = _put_together(at_once, by_name, near, held, local, mesh)
        with fail_together(mesh):
            if mine is not None:
                _write_durably(folder / mine.name, tensors)
    with fail_together(mesh):
        if is_leader(mesh) and len(files) > 1:
            n_parameters = sum(Box.whole(each.shape).numel for each in written)
            write_index(folder, {file.name: file.tensors for file in files}, sum(sizes.values()), n_parameters)


def _put_together(
    files: Sequence[File],
    written: Mapping[str, TensorToWrite],
    near: Mapping[str, Sequence[int]],
    held: Boxes,
    local: Mapping[str, Tensor],
    mesh: Mesh,
) -> dict[str, Tensor]:
    """The tensors of this rank's file among some, on the CPU.

    A part of a tensor of ours is given a name of its own: a writer may need several parts of the same one.
    """
    found: dict[str, dict[str, Tensor]] = {}
    device = next((tensor.device for tensor in local.values() if tensor.device.type != "cpu"), "cpu")
    for dtype in dict.fromkeys(written[name].dtype for file in files for name in file.tensors):
        have: dict[int, dict[str, Box]] = {rank: {} for rank in mesh.layout.ranks}
        want: dict[int, dict[str, Box]] = {file.writer: {} for file in files}
        here: dict[str, Tensor] = {}
        for file, name in ((one, name) for one in files for name in one.tensors if written[name].dtype == dtype):
            for ours, box in written[name].parts:
                key = f"{name}:{ours}"
                want[file.writer][key] = box
                for rank in near[name]:
                    shared = box & held[rank][ours] if ours in held[rank] else None
                    if shared is not None and shared.numel:
                        have[rank][key] = shared
                        if rank == mesh.rank:
                            here[key] = local[ours][shared.within(held[rank][ours]).slices]
        for key, tensor in gathered(have, want, here, mesh, dtype=dtype, device=device).items():
            name, _, ours = key.rpartition(":")
            found.setdefault(name, {})[ours] = tensor
    return {
        name: written[name].join([parts[ours] for ours, _ in written[name].parts]).to("cpu")
        for name, parts in found.items()
    }


def _write_durably(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Have a file on disk: the first rank, which does that for the folder, may be another machine."""
    try:
        write_file(path, tensors)
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise DataError(f"cannot write {path}: {reason}") from error
