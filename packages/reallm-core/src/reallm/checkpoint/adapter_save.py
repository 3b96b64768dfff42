"""Writes the folder of an adapter in PEFT's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from reallm.checkpoint.distributed_save import (
    ShardedExport,
    TensorToWrite,
    atomic_folder_distributed,
    dtypes_of_all_stages,
    write_tensors_distributed,
)
from reallm.checkpoint.hashing import Checksums
from reallm.checkpoint.save import Export, ExportOptions, is_unrelated_file, write_file, write_json, write_tokenizer
from reallm.hf.conversion.adapter_config import adapter_config
from reallm.hf.conversion.adapter_tensors import adapter_tensors
from reallm.hf.family import HFFamily
from reallm.hf.file_names import ADAPTER_CONFIG_NAME, ADAPTER_WEIGHTS_NAME
from reallm.model.config import ReaLModelConfig
from reallm.model.sharding import Box
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import fail_together, is_leader
from reallm.parallel.sharding import local_boxes


@dataclass(frozen=True)
class AdapterExport(ExportOptions):
    """The content of the folder of an adapter: `adapter_config.json`, its tensors in one file, and the tokenizer.

    The tensors keep their dtype, whatever `dtype` is: that of adapters is at least float32.
    """

    base: str | None
    """Folder or hub id of the base model."""
    family: HFFamily
    config: ReaLModelConfig
    """Configuration of the whole model, with the adapters."""
    mesh: Mesh | None
    """Mesh of the layout; None if this process holds the whole model."""
    local_tensors: Mapping[str, Tensor]
    """This rank's boxes of the parameters; not copies."""

    def write_into(self, folder: Path, checksums: Checksums | None = None) -> None:
        """Write the files into an existing folder; all ranks of the layout call it, and fail together.

        For `checksums`, see `Export.write_into`.
        """
        with fail_together(self.mesh):
            if is_leader(self.mesh):
                write_json(folder / ADAPTER_CONFIG_NAME, adapter_config(self.family, self.config, self.base))
                write_tokenizer(folder, carry_from=self.carry_from, tokenizer=self.tokenizer)
        tensors = adapter_tensors(self.family, self.config)
        if self.mesh is None or self.mesh.layout.size == 1:
            content = {
                one.name: one.pack([self.local_tensors[name].detach() for name in one.parameters]).cpu()
                for one in tensors
            }
            write_file(folder / ADAPTER_WEIGHTS_NAME, content, checksums)
            return
        dtypes = dtypes_of_all_stages(self.mesh, self.local_tensors)
        to_write = [
            TensorToWrite(
                one.name,
                one.shape,
                dtypes[one.parameters[0]],
                dtypes[one.parameters[0]],
                tuple((name, Box.whole(shape)) for name, shape in zip(one.parameters, one.shapes, strict=True)),
                one.pack,
            )
            for one in tensors
        ]
        boxes = {rank: local_boxes(self.config, self.mesh.layout, rank) for rank in self.mesh.layout.ranks}
        write_tensors_distributed(
            folder,
            self.mesh,
            to_write,
            boxes,
            self.local_tensors,
            file_name=ADAPTER_WEIGHTS_NAME,
            checksums=checksums,
        )


ModelExport = Export | ShardedExport | AdapterExport
"""What a model is saved as."""


def write_adapter(folder: str | Path, export: AdapterExport) -> None:
    """Write the folder of an adapter atomically; all ranks of the layout call it, and other ranks do nothing.

    Files in it that are not part of a checkpoint, such as a README, stay.

    Raises:
        ReallmError: it cannot be written; the same error on all ranks.
    """
    if export.mesh is not None and not export.mesh.is_member:
        return
    with atomic_folder_distributed(folder, export.mesh, keep=is_unrelated_file) as new:
        export.write_into(new)
