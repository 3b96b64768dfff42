"""`DatasetSubject`, the dataset under test, and functions that compare samples."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reallm.data.array import Array, describe, equal, is_array
from reallm.data.datasets import DatasetUtility, Samples, construct
from reallm.data.namedarray import NamedArray, flatten
from reallm.data.row_sources import RowSource
from reallm.data.serialization import to_bytes
from reallm.options import is_missing
from reallm.specs import DatasetSpec
from reallm_devkit.testing.process_state import call_and_compare
from reallm_devkit.testing.scratch import ScratchFolder
from reallm_devkit.testing.source import reference_location
from reallm_devkit.testing.spec_subject import SpecSubject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEED = 1
MAX_SAMPLES = 256
"""How many samples are checked one by one."""


@dataclass(frozen=True, kw_only=True)
class DatasetSubject(SpecSubject[DatasetSpec]):
    """A dataset with its arguments.

    Attributes:
        title: the name in error messages, `dataset 'my-dataset' of reallm-my-data 1.0`.
        config: the dataset's configuration, with the author's values.
        args: the arguments of the class besides `util`.
        path_arg: the argument that names the file with the rows; None if there is none.
        tokenizer: passed to the dataset in `util`.
        folder: keeps the file with the rows, if the kit wrote it.
    """

    title: str
    config: Any
    args: Mapping[str, Any]
    path_arg: str | None
    tokenizer: PreTrainedTokenizerBase
    folder: ScratchFolder | None = None

    @cached_property
    def cls(self) -> Any:
        """The dataset's class."""
        return self.spec.dataset_class()

    @property
    def file(self) -> Path | None:
        """The file with the rows; None if the dataset reads none."""
        value = None if self.path_arg is None else self.args.get(self.path_arg)
        value = value.path if isinstance(value, RowSource) else value
        path = Path(value) if isinstance(value, str | Path) else None
        return path if path is not None and path.is_file() else None

    def util(self, seed: int = SEED, dp_rank: int = 0, dp_size: int = 1) -> DatasetUtility:
        """The `util` argument of the dataset."""
        return DatasetUtility(seed, dp_rank, dp_size, self.tokenizer)

    def make(self, *, seed: int = SEED, dp_rank: int = 0, dp_size: int = 1, file: Path | None = None) -> Samples:
        """Construct the dataset, from other rows if `file` is given. Raises whatever the construction raises."""
        args = dict(self.args)
        if file is not None:
            assert self.path_arg is not None
            given = args[self.path_arg]
            args[self.path_arg] = replace(given, path=str(file)) if isinstance(given, RowSource) else str(file)
        return construct(self.title, self.spec, self.util(seed, dp_rank, dp_size), args)

    @property
    def samples(self) -> Samples:
        """The dataset, constructed once."""
        return self._constructed[0]

    @property
    def items(self) -> list[NamedArray]:
        """Its first samples, at most `MAX_SAMPLES`."""
        return self._read[0]

    @property
    def side_effects(self) -> dict[str, list[str]]:
        """Global state that the first construction (`__init__`) and the first reading (`__getitem__`) changed."""
        return {"__init__": self._constructed[1], "__getitem__": self._read[1]}

    @cached_property
    def _constructed(self) -> tuple[Samples, list[str]]:
        return call_and_compare(self.make)

    @cached_property
    def _read(self) -> tuple[list[NamedArray], list[str]]:
        return call_and_compare(lambda: read_samples(self.samples))

    def at(self, method: str) -> str:
        """The location of a method, or of the class if it has no such method."""
        return reference_location(self.spec.dataset, method)

    def array_fields(self, number: int) -> list[tuple[str, Any]]:
        """Dotted names and values of the arrays in a sample."""
        return [(name, value) for name, value in flatten(self.items[number]) if is_array(value)]


def read_samples(samples: Samples) -> list[NamedArray]:
    """The first samples, at most `MAX_SAMPLES`."""
    return [samples[i] for i in range(min(len(samples), MAX_SAMPLES))]


def sample_name(number: int, sample: NamedArray) -> str:
    """`sample 3 ('lines.txt:4')`."""
    ids = sample.metadata.get("ids")
    return f"sample {number} ('{ids[0]}')" if ids else f"sample {number}"


def digest(sample: NamedArray) -> str:
    """A hash of the sample's content."""
    return hashlib.sha256(to_bytes(sample)).hexdigest()


def sample_key(sample: NamedArray) -> str:
    """Identifies a sample: its id, or else the hash of its content."""
    ids = sample.metadata.get("ids")
    return str(ids[0]) if ids else digest(sample)


def first_difference(expected: list[NamedArray], seen: list[NamedArray]) -> tuple[str, str, str] | None:
    """Expected, seen and where, for the first sample that differs; None if all are equal."""
    if len(expected) != len(seen):
        return f"{len(expected)} samples", f"{len(seen)} samples", ""
    for number, (one, other) in enumerate(zip(expected, seen, strict=True)):
        if one != other:
            values, field = _difference(one, other)
            return (*values, sample_name(number, one) + field)
    return None


def _difference(one: NamedArray, other: NamedArray) -> tuple[tuple[str, str], str]:
    fields, others = dict(flatten(one)), dict(flatten(other))
    for name, value in fields.items():
        if name not in others:
            return (f"a field '{name}'", f"the fields {', '.join(others) or 'none'}"), ""
        found = others[name]
        same = equal(value, found) if isinstance(value, Array) and isinstance(found, Array) else value is found
        if not same:
            return (summarize(value), summarize(found)), f", field '{name}'"
    for item in sorted({*one.metadata, *other.metadata}):
        if one.metadata.get(item) != other.metadata.get(item):
            return (repr(one.metadata.get(item)), repr(other.metadata.get(item))), f", metadata '{item}'"
    return (f"the fields {', '.join(fields)}", f"the fields {', '.join(others)}"), ""


def summarize(value: Any) -> str:
    """`int64[7] 5 2 9 ...`."""
    if not is_array(value):
        return repr(value)
    flat = value.reshape(-1)
    numbers = [f"{number:g}" if isinstance(number, float) else str(number) for number in flat[:6].tolist()]
    return " ".join([describe(value), *numbers, *(["..."] if len(flat) > 6 else [])])


def required_values(config: Any) -> dict[str, Any]:
    """The values of the fields that have no default."""
    return {item.name: getattr(config, item.name) for item in dataclasses.fields(config) if is_required(item)}


def is_required(item: dataclasses.Field[Any]) -> bool:
    """Whether a field of a configuration has no default."""
    missing = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
    return missing or is_missing(item.default)
