"""Packs samples into a batch and splits it again, using only the batch's `seqlens`: no field is special."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any

import torch

from reallm.arguments import check_count, check_items
from reallm.data.array import Array, concatenate
from reallm.data.datasets import Samples
from reallm.data.metadata import PER_SAMPLE, Metadata, sample_count
from reallm.data.namedarray import FieldError, NamedArray, Value, flatten, from_flattened, recursive_aggregate
from reallm.data.packing import balanced_partition
from reallm.errors import DataError, did_you_mean, kind_of


def check_batch(batch: Any) -> None:
    """Check that something is a `NamedArray`.

    Raises:
        DataError: it is something else; says how to make one.
    """
    if not isinstance(batch, NamedArray):
        remedy = "; write gather(samples)" if isinstance(batch, list | tuple) else ""
        raise DataError(f"a batch must be a NamedArray, not {kind_of(batch)}{remedy}")


def n_samples(batch: NamedArray) -> int:
    """Number of samples in the batch.

    Raises:
        DataError: it has no item of metadata that tells.
    """
    check_batch(batch)
    count = sample_count(batch.metadata)
    if count is None:
        raise DataError(f"cannot separate the samples of {batch}, which has no seqlens; see with_metadata")
    return count


def lengths(batch: NamedArray, key: str) -> list[int]:
    """Number of elements of each sample along dim 0 of field `key`, over all its sequences.

    Raises:
        FieldError: the field has no `seqlens`.
    """
    return [sum(sample) for sample in _seqlens(batch, key)]


def cu_seqlens(batch: NamedArray, key: str) -> torch.Tensor:
    """Offsets of all sequences of field `key`, int32 [S+1] on the CPU: `((5,), (3, 2))` gives 0 5 8 10.

    Raises:
        FieldError: the field has no `seqlens`.
    """
    return torch.tensor([0, *accumulate(chain.from_iterable(_seqlens(batch, key)))], dtype=torch.int32)


def batches_in_order(samples: Samples, size: int) -> Iterator[NamedArray]:
    """Pack all samples of a dataset in their order, in batches of `size`; the last one may be smaller."""
    for start in range(0, len(samples), size):
        yield gather([samples[row] for row in range(start, min(start + size, len(samples)))])


def gather(samples: Sequence[NamedArray]) -> NamedArray:
    """Pack samples, or batches of several, into one batch along dim 0. Inverse of `split_samples`.

    Metadata with an entry for each sample (`metadata.PER_SAMPLE`) is concatenated; any other must be equal in all.

    Raises:
        DataError: there is no sample, or samples differ in fields, dtypes, sizes other than that of dim 0, or
            metadata; names the field.
    """
    if not isinstance(samples, list | tuple):
        raise DataError(f"samples must be a list of NamedArrays, not {kind_of(samples)}")
    if not samples:
        raise DataError("cannot gather a batch of no samples")
    for sample in samples:
        n_samples(sample)
        _check_fields(sample)
    batch = recursive_aggregate(samples, concatenate)
    first = samples[0].metadata
    seqlens = first.get("seqlens", {})
    for i, sample in enumerate(samples):
        for name in sorted(first.keys() | sample.metadata.keys()):
            kept, found = first.get(name), sample.metadata.get(name)
            if (kept is None) != (found is None) or (name not in PER_SAMPLE and kept != found):
                raise DataError(f"cannot gather: metadata '{name}' differs between samples 0 and {i}")
        for key in sorted(seqlens.keys() ^ sample.metadata.get("seqlens", {}).keys()):
            raise DataError(f"cannot gather: only one of samples 0 and {i} has seqlens of '{key}'")
    joined: dict[str, Any] = {
        "seqlens": {key: [s for sample in samples for s in sample.metadata["seqlens"][key]] for key in seqlens}
    }
    for item in _other_per_sample(first):
        joined[item] = [entry for sample in samples for entry in sample.metadata[item]]
    return batch.with_metadata(**{**first, **joined})


def select(batch: NamedArray, indices: Sequence[int]) -> NamedArray:
    """A batch of the samples at `indices`, in this order; a sample may be repeated.

    Raises:
        DataError: there is no such sample, or a field has no `seqlens`; names it.
    """
    return _selections(batch, [check_items("indices", indices, int)])[0]


def split_samples(batch: NamedArray) -> list[NamedArray]:
    """The samples of a batch, as views of it. Inverse of `gather`.

    Raises:
        DataError: a field has no `seqlens`; names it.
    """
    return _selections(batch, [[i] for i in range(n_samples(batch))])


def split_groups(batch: NamedArray, sequences: Mapping[str, int]) -> NamedArray:
    """A batch of the same arrays, of which each unit of a sample is a sample: a sample of k units becomes k samples.

    A group of long answers can then be cut into several micro-batches. Samples of k pairs of sequences, with a margin
    for each pair, become pairs by

        split_groups(batch, {"input_ids": 2, "prompt_lens": 2, "margins": 1})

    Units keep the id and the columns of their sample. Their `groups` are the index of the sample, or what it has in
    `groups`, so that units can be cut once more.

    Args:
        batch: the batch.
        sequences: for each field, how many sequences, one after another, a unit has.

    Raises:
        DataError: a field is missing from `sequences` or from the batch, or a sample does not consist of whole units;
            names the field and the sample.
    """
    count = n_samples(batch)
    _check_fields(batch)
    seqlens = batch.metadata.get("seqlens", {})
    for key in seqlens.keys() - sequences.keys():
        raise DataError(f"cannot split groups: say how many sequences of '{key}' a unit has")
    n_units = {key: _n_units(batch, key, check_count(f"sequences['{key}']", n)) for key, n in sequences.items()}
    first, counts = next(iter(n_units.items()), ("", [1] * count))
    for key, others in n_units.items():
        for i, (n, other) in enumerate(zip(counts, others, strict=True)):
            if n != other:
                raise DataError(
                    f"cannot split groups: {_name(batch, i)} has {n} units of '{first}', but {other} of '{key}'"
                )
    cut = {
        key: [sample[i : i + sequences[key]] for sample in samples for i in range(0, len(sample), sequences[key])]
        for key, samples in seqlens.items()
    }
    sources = [i for i, n in enumerate(counts) for _ in range(n)]
    metadata = {item: [batch.metadata[item][i] for i in sources] for item in _other_per_sample(batch.metadata)}
    return batch.with_metadata(**{"groups": sources, **metadata}, seqlens=cut)


def _n_units(batch: NamedArray, key: str, size: int) -> list[int]:
    """Number of units of each sample, made of `size` sequences of field `key`."""
    samples = _seqlens(batch, key)
    for i, sample in enumerate(samples):
        if len(sample) % size:
            raise DataError(
                f"cannot split groups: {_name(batch, i)} has {len(sample)} sequences of '{key}', which is not a "
                f"multiple of {size}"
            )
    return [len(sample) // size for sample in samples]


def _name(batch: NamedArray, row: int) -> str:
    """The sample's name in an error."""
    return f"'{batch.metadata['ids'][row]}'" if "ids" in batch.metadata else f"sample {row}"


def partition(batch: NamedArray, key: str, k: int) -> list[NamedArray]:
    """Split a batch into `k` batches (one per data-parallel rank) with nearly equal numbers of elements of field `key`.

    Each sample is in one batch, and no batch is empty if there are at least `k` samples; see
    `packing.balanced_partition`.

    Raises:
        DataError: `k` is below 1 or a field has no `seqlens`; names it.
    """
    return _selections(batch, balanced_partition(lengths(batch, key), check_count("k", k)))


def _selections(batch: NamedArray, groups: Sequence[Sequence[int]]) -> list[NamedArray]:
    count = n_samples(batch)
    _check_fields(batch)
    for i in chain.from_iterable(groups):
        if not 0 <= i < count:
            raise DataError(f"no sample {i} in a batch of {count}")
    fields = flatten(batch)
    seqlens = batch.metadata.get("seqlens", {})
    offsets = {key: [0, *accumulate(lengths(batch, key))] for key in seqlens}

    def cut(name: str, value: Value, indices: Sequence[int]) -> Value:
        if not isinstance(value, Array):
            return value
        starts = offsets[name.partition(".")[0]]
        return concatenate([value[starts[i] : starts[i + 1]] for i in indices] or [value[:0]])

    def selection(indices: Sequence[int]) -> NamedArray:
        metadata = {**batch.metadata, "seqlens": {key: [rows[i] for i in indices] for key, rows in seqlens.items()}}
        for item in _other_per_sample(metadata):
            metadata[item] = [metadata[item][i] for i in indices]
        return from_flattened([(name, cut(name, value, indices)) for name, value in fields], metadata)

    return [selection(indices) for indices in groups]


def _other_per_sample(metadata: Metadata) -> list[str]:
    """The items of metadata with an entry for each sample, without `seqlens`."""
    return [item for item in PER_SAMPLE if item in metadata and item != "seqlens"]


def _seqlens(batch: NamedArray, key: str) -> tuple[tuple[int, ...], ...]:
    check_batch(batch)
    if not isinstance(key, str):
        raise FieldError(f"a field is named by text, not by {kind_of(key)}")
    seqlens = batch.metadata.get("seqlens", {})
    if key not in seqlens:
        known = f"seqlens of {', '.join(seqlens)}" if seqlens else "none; see with_metadata"
        raise FieldError(f"no seqlens of '{key}'{did_you_mean(key, seqlens)}; there are {known}")
    return seqlens[key]


def _check_fields(batch: NamedArray) -> None:
    """Raise DataError for an array without `seqlens`."""
    seqlens = batch.metadata.get("seqlens", {})
    for name, value in flatten(batch):
        key = name.partition(".")[0]
        if isinstance(value, Array) and key not in seqlens:
            raise DataError(f"field '{key}' has no seqlens, so its samples cannot be separated; see with_metadata")
