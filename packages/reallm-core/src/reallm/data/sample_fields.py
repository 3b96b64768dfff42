"""Fields that are added to the samples of a dataset: their values for all samples, and the file that keeps them.

The file is a safetensors file: for each field its values, and the lengths of its sequences. Its metadata has checksums.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors
import torch
from torch import Tensor

from reallm.atomic_files import atomic_write
from reallm.data.datasets import Samples, own_report
from reallm.data.mixture import MixedSamples
from reallm.data.namedarray import NamedArray
from reallm.errors import DataError, counted
from reallm.foreign_files import parse_json, reading
from reallm.tensor_files import bytes_of, save_tensors

HEADER = "reallm.sample_fields"
VERSION = 1

_VALUES, _LENGTHS, _COUNTS = "values", "lengths", "counts"


@dataclass(frozen=True)
class SampleField:
    """A field of all samples of a dataset.

    Args:
        values: [T, ...] the elements of all samples, one sample after the other.
        lengths: int64 [S] the lengths of all sequences.
        counts: int64 [n] the number of sequences of each sample.
    """

    values: Tensor
    lengths: Tensor
    counts: Tensor

    @classmethod
    def of_batches(
        cls, values: Sequence[Tensor], seqlens: Sequence[tuple[int, ...]], rows: Sequence[int]
    ) -> SampleField:
        """The field in the order of the dataset.

        Args:
            values: the elements of batches of samples, [T_b, ...].
            seqlens: the lengths of the sequences of each sample, in the order of the batches.
            rows: index of each sample in the dataset, in the same order; a permutation.
        """
        order = np.argsort(np.asarray(rows, np.int64))
        sizes = np.array([sum(sample) for sample in seqlens], np.int64)
        starts = np.cumsum(sizes) - sizes
        sizes, starts = sizes[order], starts[order]
        ends = np.cumsum(sizes)
        at = np.arange(sizes.sum()) + np.repeat(starts - (ends - sizes), sizes)
        in_order = [seqlens[i] for i in order]
        return cls(
            torch.cat(list(values))[torch.from_numpy(at)],
            torch.tensor([length for sample in in_order for length in sample], dtype=torch.int64),
            torch.tensor([len(sample) for sample in in_order], dtype=torch.int64),
        )

    def __len__(self) -> int:
        return len(self.counts)

    def __getitem__(self, i: int) -> tuple[Tensor, list[int]]:
        """The elements of a sample, a view, and the lengths of its sequences."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        first, last = self._sequences[i : i + 2]
        start, end = self._elements[first], self._elements[last]
        return self.values[start:end], self.lengths[first:last].tolist()

    @cached_property
    def _sequences(self) -> list[int]:
        return [0, *self.counts.cumsum(0).tolist()]

    @cached_property
    def _elements(self) -> list[int]:
        return [0, *self.lengths.cumsum(0).tolist()]


@dataclass(frozen=True)
class SamplesWithFields:
    """The samples of a dataset with further fields; a map-style dataset itself.

    Args:
        samples: the dataset.
        fields: name of a field -> its values in all samples.
    """

    samples: Samples
    fields: Mapping[str, SampleField]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int, /) -> NamedArray:
        sample = self.samples[index]
        found = {name: field[index] for name, field in self.fields.items()}
        seqlens = {name: [lengths] for name, (_, lengths) in found.items()}
        with_values = sample.with_fields(**{name: values for name, (values, _) in found.items()})
        return with_values.with_metadata(seqlens={**sample.metadata.get("seqlens", {}), **seqlens})

    def report(self) -> str:
        """The report of the dataset."""
        own = own_report(self.samples)
        return counted(len(self), "sample") if own is None else own


def sources_of(samples: Samples) -> dict[str, Samples]:
    """The datasets that samples come from, by name: those of a mixture, or under an empty name the samples."""
    return dict(samples.sources) if isinstance(samples, MixedSamples) else {"": samples}


def with_fields(samples: Samples, fields: Mapping[str, Mapping[str, SampleField]]) -> Samples:
    """Samples with further fields.

    Args:
        samples: a dataset, or a mixture of several.
        fields: name in `sources_of` -> name of a field -> its values in all samples of that dataset.
    """
    extended = {name: SamplesWithFields(source, fields[name]) for name, source in sources_of(samples).items()}
    return MixedSamples(extended, samples.weights) if isinstance(samples, MixedSamples) else extended[""]


def save_fields(fields: Mapping[str, SampleField], path: Path, about: Mapping[str, str]) -> None:
    """Write fields to a file, atomically.

    Args:
        fields: name of a field -> its values.
        path: the file.
        about: what the values are, to be read with them.

    Raises:
        DataError: the file cannot be written; names it.
    """
    tensors = {
        f"{name}/{part}": getattr(field, part).contiguous()
        for name, field in fields.items()
        for part in (_VALUES, _LENGTHS, _COUNTS)
    }
    checksums = {name: _checksum(tensor) for name, tensor in tensors.items()}
    header = {"version": VERSION, "about": dict(about), "fields": list(fields), "crc32": checksums}
    with atomic_write(path) as temporary:
        save_tensors(tensors, temporary, {HEADER: json.dumps(header)})


def load_fields(path: str | os.PathLike[str]) -> tuple[dict[str, SampleField], dict[str, str]]:
    """The fields in a file, and what it says about them. Values are mapped, and their checksums compared.

    Raises:
        DataError: the file is missing, damaged, or not such a file; names it.
    """
    with reading(path, error=DataError, problem="is damaged"):
        with safetensors.safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {})[HEADER])
            if header["version"] != VERSION:
                raise DataError(f"{path}: written by another version of reallm")
            tensors = {name: file.get_tensor(name) for name in header["crc32"]}
        for name, checksum in header["crc32"].items():
            if _checksum(tensors[name]) != checksum:
                raise ValueError(f"{name} is not what was written")
        fields = {
            name: SampleField(*(tensors[f"{name}/{part}"] for part in (_VALUES, _LENGTHS, _COUNTS)))
            for name in header["fields"]
        }
        return fields, dict(header["about"])


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(bytes_of(tensor))
