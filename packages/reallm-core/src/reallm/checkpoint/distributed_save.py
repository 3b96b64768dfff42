"""Distributed saving: all ranks of a layout write one checkpoint into one folder.

Each rank writes some of the tensors into separate files, with nearly the same number of bytes per rank; the leader adds
the index and the small files. The tensors of a file are gathered from all ranks just before the file is written, so
that no rank holds more than one file in addition to its shard of the model.

The folder must be on a file system that all ranks share. It gets its name when all ranks have written; if one fails,
the former content stays, and all ranks raise the same error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reallm.atomic_files import AnyPath, atomic_folder, flush
from reallm.checkpoint.file_plan import File, assign_writers, plan_files, write_rounds
from reallm.checkpoint.hashing import Checksums
from reallm.checkpoint.save import ExportOptions, is_unrelated_file, write_file, write_index, write_small_files
from reallm.errors import DataError, short_reason
from reallm.hf.conversion.mapping import weight_mappings
from reallm.hf.family import HFFamily
from reallm.model.config import ReaLModelConfig
from reallm.model.parameters import parameter_infos
from reallm.model.sharding import Box, Shape
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import all_gather_json, fail_together, is_leader
from reallm.parallel.sharding import local_boxes
from reallm.reallocation.execute import execute
from reallm.reallocation.plan import plan_boxes
from reallm.reallocation.types import BoxesByRank


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor of a file, with the boxes of the ranks' tensors that it is made from."""

    name: str
    shape: Shape
    dtype: torch.dtype
    source_dtype: torch.dtype
    """Dtype of the tensors that it is made from."""
    sources: tuple[tuple[str, Box], ...]
    """Names of the ranks' tensors, each with the box of it that is needed."""
    pack: Callable[[Sequence[Tensor]], Tensor]
    """Function that makes the tensor from these boxes."""

    @property
    def n_bytes(self) -> int:
        """Size in the file."""
        return Box.whole(self.shape).numel * self.dtype.itemsize


@dataclass(frozen=True)
class ShardedExport(ExportOptions):
    """The content of a checkpoint folder for a model that is sharded over the ranks of a layout; see `Export`.

    Raises:
        ConfigError: `max_shard_size` is not a size.
    """

    hf_config: Mapping[str, Any]
    """Content of `config.json`."""
    family: HFFamily
    """Family whose format the checkpoint has."""
    config: ReaLModelConfig
    """Configuration of the whole model."""
    mesh: Mesh
    """Mesh of the layout."""
    local_tensors: Mapping[str, Tensor]
    """This rank's boxes of the parameters, as given by `local_boxes`; not copies."""

    def write_into(self, folder: Path, checksums: Checksums | None = None) -> None:
        """Write the files into an existing folder; all ranks of the layout call it, and fail together.

        For `checksums`, see `Export.write_into`: each rank gets those of its own files.

        Raises:
            ReallmError: what went wrong and on which rank.
        """
        with fail_together(self.mesh):
            if is_leader(self.mesh):
                write_small_files(folder, self.hf_config, carry_from=self.carry_from, tokenizer=self.tokenizer)
        boxes = {rank: local_boxes(self.config, self.mesh.layout, rank) for rank in self.mesh.layout.ranks}
        source_dtypes = dtypes_of_all_stages(self.mesh, self.local_tensors)
        tensors = [
            TensorToWrite(
                name,
                mapping.hf_shape,
                self.dtype or source_dtypes[mapping.parameters[0]],
                source_dtypes[mapping.parameters[0]],
                tuple(zip(mapping.parameters, mapping.boxes_in(item), strict=True)),
                mapping.pack,
            )
            for mapping in weight_mappings(self.family, self.config)
            for item, name in enumerate(mapping.hf_names)
        ]
        write_tensors_distributed(
            folder,
            self.mesh,
            tensors,
            boxes,
            self.local_tensors,
            max_shard_size=self.max_shard_size,
            checksums=checksums,
        )


def write_distributed(folder: AnyPath, export: ShardedExport) -> None:
    """Write a checkpoint atomically: even if killed, `folder` holds either its former content or the new checkpoint.

    All ranks of the layout must call it; other ranks may, and do nothing.

    Raises:
        ReallmError: the checkpoint cannot be written; the same error on all ranks.
    """
    if not export.mesh.is_member:
        return
    with atomic_folder_distributed(folder, export.mesh, keep=is_unrelated_file) as new:
        export.write_into(new)


@contextmanager
def atomic_folder_distributed(
    path: AnyPath, mesh: Mesh | None, *, keep: Callable[[str], bool] | None = None
) -> Iterator[Path]:
    """`atomic_folder` for all ranks of a layout, which write into the same new folder.

    An error in the block must be raised on all ranks, as `fail_together` does.

    Raises:
        DataError: the folder cannot be made or renamed; the same error on all ranks.
    """
    with ExitStack() as stack:  # on the leader: at the end the folder gets its name, or is removed
        with fail_together(mesh):
            new = stack.enter_context(atomic_folder(path, keep=keep)) if is_leader(mesh) else None
        if mesh is None or mesh.layout.size == 1:
            assert new is not None
            yield new
        else:
            yield _broadcast_folder(new, mesh)
        with fail_together(mesh):
            stack.close()


def _broadcast_folder(new: Path | None, mesh: Mesh) -> Path:
    """Broadcast the leader's folder, which must be visible to the other ranks too."""
    leader = mesh.layout.ranks[0]
    folder = Path(all_gather_json(new and str(new), mesh.all)[leader])
    with fail_together(mesh):
        if not folder.is_dir():
            raise DataError(
                f"{folder.parent} is not the same folder here as on rank {leader}; several ranks save to a file system "
                "that all of them share"
            )
    return folder


def save_optimizer_tensors(
    folder: Path,
    mesh: Mesh,
    config: ReaLModelConfig,
    tensors: Mapping[str, Tensor],
    checksums: Checksums,
) -> None:
    """Write the unsharded tensors of an optimizer, such as moments; all ranks of the layout call it.

    Args:
        folder: exists, and is the same for all ranks.
        mesh: the layout.
        config: configuration of the whole model.
        tensors: tensors of this rank, named `<anything>/<parameter>` or `<anything>/<parameter>/<anything>`; each has
            the shape of this rank's box of the parameter, or is the same on all ranks that have it, such as a count of
            steps or the variances of the rows of a whole matrix.
        checksums: those of the files that this rank writes are added to it.

    Raises:
        ReallmError: what went wrong and on which rank.
    """
    parameter_boxes = {rank: local_boxes(config, mesh.layout, rank) for rank in mesh.layout.ranks}
    local = {name: [str(tensor.dtype), list(tensor.shape)] for name, tensor in tensors.items()}
    by_rank = all_gather_json(local, mesh.all)
    infos = {info.name: info for info in parameter_infos(config)}
    dtypes: dict[str, str] = {}
    whole: dict[str, Box] = {}
    boxes: dict[int, dict[str, Box]] = {rank: {} for rank in by_rank}
    for rank, of_rank in by_rank.items():
        for name, (dtype, shape) in of_rank.items():
            box = parameter_boxes[rank][parameter_of(name)]
            is_part = tuple(shape) == box.shape
            dtypes[name] = dtype
            whole[name] = Box.whole(infos[parameter_of(name)].shape if is_part else shape)
            boxes[rank][name] = box if is_part else whole[name]
    to_write = [
        TensorToWrite(
            name,
            whole[name].shape,
            _parse_dtype(dtype),
            _parse_dtype(dtype),
            ((name, whole[name]),),
            lambda boxes: boxes[0],
        )
        for name, dtype in dtypes.items()
    ]
    if to_write:
        write_tensors_distributed(folder, mesh, to_write, boxes, tensors, checksums=checksums)


def parameter_of(name: str) -> str:
    """The parameter in the name of an optimizer's tensor."""
    return name.split("/")[1]


def dtypes_of_all_stages(mesh: Mesh, tensors: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """Name -> dtype, for the tensors of all pipeline stages."""
    if mesh.layout.pp == 1:
        return {name: tensor.dtype for name, tensor in tensors.items()}
    by_rank = all_gather_json({name: str(tensor.dtype) for name, tensor in tensors.items()}, mesh.pp)
    return {name: _parse_dtype(dtype) for dtypes in by_rank.values() for name, dtype in dtypes.items()}


def _parse_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."))
    assert isinstance(dtype, torch.dtype)
    return dtype


def write_tensors_distributed(
    folder: Path,
    mesh: Mesh,
    tensors: Sequence[TensorToWrite],
    boxes: BoxesByRank,
    local_tensors: Mapping[str, Tensor],
    *,
    max_shard_size: int | str = "5GB",
    file_name: str | None = None,
    checksums: Checksums | None = None,
) -> None:
    """Write tensors as safetensors files with an index; all ranks of the layout call it.

    Args:
        folder: exists, and is the same for all ranks.
        mesh: the layout.
        tensors: tensors to write, the same on all ranks.
        boxes: boxes of the tensors' sources that the ranks hold.
        local_tensors: this rank's boxes of the sources.
        max_shard_size: see `ShardedExport`.
        file_name: name of a single file for all of them, which the first rank writes; None: files as transformers has.
        checksums: see `ShardedExport.write_into`.

    Raises:
        ReallmError: what went wrong and on which rank.
    """
    by_name = {tensor.name: tensor for tensor in tensors}
    sizes = {name: tensor.n_bytes for name, tensor in by_name.items()}
    owners = {
        name: [rank for rank in mesh.layout.ranks if any(source in boxes[rank] for source, _ in tensor.sources)]
        for name, tensor in by_name.items()
    }
    if file_name is None:
        files = plan_files(assign_writers(sizes, owners, mesh.layout.ranks), sizes, max_shard_size)
    else:
        files = [File(file_name, mesh.layout.ranks[0], tuple(sizes))]
    for files_of_round in write_rounds(files):
        own_file = next((file for file in files_of_round if file.writer == mesh.rank), None)
        content = _gather_files(files_of_round, by_name, owners, boxes, local_tensors, mesh)
        with fail_together(mesh):
            if own_file is not None:
                _write_durably(folder / own_file.name, content, checksums)
    with fail_together(mesh):
        if is_leader(mesh) and len(files) > 1:
            n_parameters = sum(Box.whole(tensor.shape).numel for tensor in tensors)
            write_index(folder, {file.name: file.tensors for file in files}, sum(sizes.values()), n_parameters)


def _gather_files(
    files: Sequence[File],
    tensors: Mapping[str, TensorToWrite],
    owners: Mapping[str, Sequence[int]],
    boxes: BoxesByRank,
    local_tensors: Mapping[str, Tensor],
    mesh: Mesh,
) -> dict[str, Tensor]:
    """Gather the tensors of each file on the CPU of its writer; returns those of this rank's file.

    This is a reallocation to the placement in which each writer holds the boxes that its file's tensors are made from.

    Raises:
        PeerError: another rank is missing or stuck; names the rank and the tensor.
    """
    device = next((tensor.device for tensor in local_tensors.values() if tensor.device.type != "cpu"), "cpu")
    names = [name for file in files for name in file.tensors]
    gathered: dict[tuple[str, str], Tensor] = {}
    for source_dtype, dtype in dict.fromkeys((tensors[name].source_dtype, tensors[name].dtype) for name in names):
        source_boxes: dict[int, dict[str, Box]] = {rank: {} for rank in mesh.layout.ranks}
        target_boxes: dict[int, dict[str, Box]] = {rank: {} for rank in mesh.layout.ranks}
        sources: dict[str, Tensor] = {}
        keys: dict[str, tuple[str, str]] = {}
        for file in files:
            for name in file.tensors:
                if (tensors[name].source_dtype, tensors[name].dtype) != (source_dtype, dtype):
                    continue
                for source, box in tensors[name].sources:
                    key = source if source == name else f"{source} for {name}"  # several tensors may need one source
                    keys[key] = (name, source)
                    target_boxes[file.writer][key] = box
                    for rank in owners[name]:
                        shared = box & boxes[rank][source] if source in boxes[rank] else None
                        if shared is not None and shared.numel:
                            source_boxes[rank][key] = shared
                            if rank == mesh.rank:
                                local = local_tensors[source][shared.within(boxes[rank][source]).slices]
                                sources[key] = local.to(device)
        result = execute(
            plan_boxes(source_boxes, target_boxes),
            mesh,
            source=sources,
            source_boxes=source_boxes[mesh.rank],
            target_boxes=target_boxes[mesh.rank],
            ranks=tuple(sorted(mesh.layout.ranks)),
            source_dtype=source_dtype,
            dtype=dtype,
            device=device,
        )
        gathered |= {keys[key]: tensor for key, tensor in result.tensors.items()}
    return {
        name: tensors[name].pack([gathered[name, source] for source, _ in tensors[name].sources]).to("cpu")
        for name in dict.fromkeys(name for name, _ in gathered)
    }


def _write_durably(path: Path, tensors: Mapping[str, Tensor], checksums: Checksums | None) -> None:
    """Write a file and fsync it, since the leader, which syncs the folder, may be on another machine."""
    try:
        write_file(path, tensors, checksums)
        flush(path)
    except OSError as error:
        raise DataError(f"cannot write {path}: {short_reason(error)}") from error
