"""A dataset under test: how it is made, and what its samples are compared by."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reallm.data.array import Array, describe, equal, is_array
from reallm.data.datasets import DatasetUtility, Samples, construct
from reallm.data.namedarray import NamedArray, flatten
from reallm.data.serialization import to_bytes
from reallm.options import REQUIRED
from reallm.specs import DatasetSpec
from reallm_devkit.testing.folders import Folder
from reallm_devkit.testing.process_state import changes
from reallm_devkit.testing.source import reference_location

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEED = 1
MOST = 256
"""Samples that are looked at one by one, at the most."""


@dataclass(frozen=True)
class DatasetSubject:
    """A dataset with its arguments.

    Attributes:
        title: as errors call it, `dataset 'my-dataset' of reallm-my-data 1.0`.
        spec: what the plugin returns.
        config: of the dataset, with the author's values.
        args: what the class is constructed with beside `util`.
        source: the argument that names the file with the rows; None if no argument does.
        tokenizer: handed to the dataset.
        table: where the plugin says so.
        light_modules: imported to look at the plugin.
        folder: of the file with the rows, if the kit wrote it.
    """

    title: str
    spec: DatasetSpec
    config: Any
    args: Mapping[str, Any]
    source: str | None
    tokenizer: PreTrainedTokenizerBase
    table: str
    light_modules: tuple[str, ...] = ()
    folder: Folder | None = None

    @property
    def description(self) -> str:
        """What the plugin says of the dataset."""
        return self.spec.description

    @cached_property
    def cls(self) -> Any:
        """The dataset's class."""
        return self.spec.dataset_class()

    @property
    def file(self) -> Path | None:
        """The file with the rows, if there is one."""
        value = None if self.source is None else self.args.get(self.source)
        path = Path(value) if isinstance(value, str | Path) else None
        return path if path is not None and path.is_file() else None

    def util(self, seed: int = SEED, dp_rank: int = 0, dp_size: int = 1) -> DatasetUtility:
        """What the dataset is given beside its arguments."""
        return DatasetUtility(seed, dp_rank, dp_size, self.tokenizer)

    def make(self, *, seed: int = SEED, dp_rank: int = 0, dp_size: int = 1, file: Path | None = None) -> Samples:
        """The dataset, constructed anew; from other rows if `file` is given. Raises what its construction raises."""
        args = dict(self.args)
        if file is not None:
            assert self.source is not None
            args[self.source] = str(file)
        return construct(self.title, self.spec, self.util(seed, dp_rank, dp_size), args)

    @property
    def samples(self) -> Samples:
        """The dataset, constructed once."""
        return self._constructed[0]

    @property
    def items(self) -> list[NamedArray]:
        """Its first samples."""
        return self._read[0]

    @property
    def side_effects(self) -> dict[str, list[str]]:
        """What changed in the process when the dataset was first constructed, and when it was first read."""
        return {"__init__": self._constructed[1], "__getitem__": self._read[1]}

    @cached_property
    def _constructed(self) -> tuple[Samples, list[str]]:
        return changes(self.make)

    @cached_property
    def _read(self) -> tuple[list[NamedArray], list[str]]:
        return changes(lambda: read(self.samples))

    def at(self, method: str) -> str:
        """Where the class defines a method, or is itself."""
        return reference_location(self.spec.dataset, method)

    def array_fields(self, number: int) -> list[tuple[str, Any]]:
        """Dotted names and values of the arrays of a sample."""
        return [(name, value) for name, value in flatten(self.items[number]) if is_array(value)]


def read(samples: Samples) -> list[NamedArray]:
    """The first samples, by their numbers."""
    return [samples[i] for i in range(min(len(samples), MOST))]


def sample_name(number: int, sample: NamedArray) -> str:
    """`sample 3 ('lines.txt:4')`."""
    ids = sample.metadata.get("ids")
    return f"sample {number} ('{ids[0]}')" if ids else f"sample {number}"


def digest(sample: NamedArray) -> str:
    """The same for equal samples."""
    return hashlib.sha256(to_bytes(sample)).hexdigest()


def key(sample: NamedArray) -> str:
    """What tells samples apart: the id, or else the content."""
    ids = sample.metadata.get("ids")
    return str(ids[0]) if ids else digest(sample)


def first_difference(expected: list[NamedArray], seen: list[NamedArray]) -> tuple[str, str, str] | None:
    """What is expected, what is seen, and where, of the first sample that differs; None if all are equal."""
    if len(expected) != len(seen):
        return f"{len(expected)} samples", f"{len(seen)} samples", ""
    for number, (one, other) in enumerate(zip(expected, seen, strict=True)):
        if one != other:
            what, field = _difference(one, other)
            return (*what, sample_name(number, one) + field)
    return None


def _difference(one: NamedArray, other: NamedArray) -> tuple[tuple[str, str], str]:
    fields, others = dict(flatten(one)), dict(flatten(other))
    for name, value in fields.items():
        if name not in others:
            return (f"a field '{name}'", f"the fields {', '.join(others) or 'none'}"), ""
        found = others[name]
        same = equal(value, found) if isinstance(value, Array) and isinstance(found, Array) else value is found
        if not same:
            return (short(value), short(found)), f", field '{name}'"
    for item in sorted({*one.metadata, *other.metadata}):
        if one.metadata.get(item) != other.metadata.get(item):
            return (repr(one.metadata.get(item)), repr(other.metadata.get(item))), f", metadata '{item}'"
    return (f"the fields {', '.join(fields)}", f"the fields {', '.join(others)}"), ""


def short(value: Any) -> str:
    """`int64[7] 5 2 9 ...`."""
    if not is_array(value):
        return repr(value)
    flat = value.reshape(-1)
    numbers = [f"{number:g}" if isinstance(number, float) else str(number) for number in flat[:6].tolist()]
    return " ".join([describe(value), *numbers, *(["..."] if len(flat) > 6 else [])])


def required_values(config: Any) -> dict[str, Any]:
    """The values of a configuration that have no default."""
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if is_required(item)}


def is_required(item: dataclasses.Field[Any]) -> bool:
    """Whether a field of a configuration must be given."""
    missing = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    return missing or (isinstance(item.default, str) and item.default == REQUIRED)
