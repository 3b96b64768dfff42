"""Checks of a dataset's samples, each by itself and packed together."""

from __future__ import annotations

import torch

from reallm.data.array import describe, is_array
from reallm.data.batching import gather, n_samples, partition, select, split_samples
from reallm.data.metadata import sample_count
from reallm.data.namedarray import NamedArray, flatten
from reallm.data.serialization import to_bytes
from reallm.errors import ConfigError, DataError, PluginError, ReallmError, with_article
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.datasets.subject import (
    DatasetSubject,
    first_difference,
    read_samples,
    sample_name,
    summarize,
)


@check()
def construction(subject: DatasetSubject) -> str:
    """the class takes `util` and each key of its configuration, and makes samples of the rows"""
    try:
        count = len(subject.samples)
    except (ConfigError, PluginError) as error:
        raise CheckFailed(construction.promise, str(error), look_at=subject.at("__init__")) from error
    if count < 1:
        raise CheckFailed("at least one sample of the given rows", "none", look_at=subject.at("__init__"))
    return f"{subject.cls.__qualname__}, {count} sample{'' if count == 1 else 's'}"


@check(needs=[construction])
def sample(subject: DatasetSubject) -> str:
    """each item is a `NamedArray` of one sample, in host memory, that can be written to a file"""
    look_at = subject.at("__getitem__")
    for i, item in enumerate(subject.items):
        if not isinstance(item, NamedArray):
            raise CheckFailed("a NamedArray", with_article(type(item).__name__), f"sample {i}", look_at)
        where = sample_name(i, item)
        if not any(is_array(value) for _, value in flatten(item)):
            raise CheckFailed("at least one array", f"{item!r}", where, look_at)
        count = sample_count(item.metadata)
        if count not in (None, 1):
            raise CheckFailed("one sample", f"{count} samples in its seqlens or ids", where, look_at)
        for name, value in flatten(item):
            if isinstance(value, torch.Tensor) and (value.device.type != "cpu" or value.requires_grad):
                kind = "that requires a gradient" if value.requires_grad else "elsewhere"
                seen = f"{describe(value)} {kind}"
                raise CheckFailed("a plain tensor on the CPU", seen, f"{where}, field '{name}'", look_at)
        try:
            to_bytes(item)
        except DataError as error:
            raise CheckFailed("dtypes that a file can hold", str(error), where, look_at) from error
    return ", ".join(f"{name} {describe(value)}" for name, value in subject.array_fields(0))


@check(needs=[sample])
def keys(subject: DatasetSubject) -> str:
    """the keys that the `DatasetSpec` declares are those of each sample"""
    declared = subject.spec.keys
    if not declared:
        raise Skipped(f"none are declared; with DatasetSpec(keys={tuple(subject.items[0])}) mistakes are found earlier")
    for number, item in enumerate(subject.items):
        if sorted(item) != sorted(declared):
            expected = f"the keys {', '.join(declared)}, which are declared"
            raise CheckFailed(expected, ", ".join(item), sample_name(number, item), subject.table)
    return ", ".join(declared)


@check(needs=[sample])
def seqlens(subject: DatasetSubject) -> str:
    """`seqlens` has the sample's length in every field"""
    for number, item in enumerate(subject.items):
        seqlens_of = item.metadata.get("seqlens", {})
        for name, value in subject.array_fields(number):
            field = name.partition(".")[0]
            if field not in seqlens_of:
                raise CheckFailed(
                    f"seqlens of '{field}', such as [[{value.shape[0] if value.ndim else 1}]]",
                    f"seqlens of {', '.join(seqlens_of) or 'no field'}",
                    f"{sample_name(number, item)}, field '{name}'",
                    subject.at("__getitem__"),
                )
        if not any(sum(sum(lengths) for lengths in rows) for rows in seqlens_of.values()):
            where = sample_name(number, item)
            raise CheckFailed("a sample that holds something", "no elements", where, subject.at("__getitem__"))
    return ", ".join(f"{field} {rows[0]}" for field, rows in subject.items[0].metadata["seqlens"].items())


@check(needs=[seqlens])
def tokens(subject: DatasetSubject) -> str:
    """token ids are int64 and in the vocabulary; `loss_mask` is bool and goes with `input_ids`"""
    look_at = subject.at("__getitem__")
    size, highest = len(subject.tokenizer), -1
    fields = [name for name, _ in subject.array_fields(0) if name.endswith("_ids")]
    if not fields:
        raise Skipped("no field is named `..._ids`, as those with token ids are")
    for number, item in enumerate(subject.items):
        where = sample_name(number, item)
        for name in fields:
            value = dict(flatten(item)).get(name)
            position = f"{where}, field '{name}'"
            if not isinstance(value, torch.Tensor) or value.dtype != torch.int64 or value.ndim != 1:
                raise CheckFailed("an int64 tensor of one dimension", summarize(value), position, look_at)
            if value.numel() and not 0 <= int(value.min()) <= int(value.max()) < size:
                seen = f"{int(value.min())} to {int(value.max())}"
                raise CheckFailed(f"token ids from 0 to {size - 1}, as the tokenizer's", seen, position, look_at)
            highest = max([highest, *value.tolist()])
        if "loss_mask" in item and "input_ids" in item:
            mask, lengths = item["loss_mask"], item.metadata["seqlens"]
            position = f"{where}, field 'loss_mask'"
            if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
                raise CheckFailed("a bool tensor", summarize(mask), position, look_at)
            if lengths["loss_mask"] != lengths["input_ids"]:
                expected = f"the seqlens of 'input_ids', {lengths['input_ids'][0]}"
                raise CheckFailed(expected, f"{lengths['loss_mask'][0]}", position, look_at)
    return f"{', '.join(fields)} up to {highest} of {size} tokens"


@check(needs=[sample])
def ids(subject: DatasetSubject) -> str:
    """each sample has a unique id, by which errors name it"""
    index_by_id: dict[str, int] = {}
    with_ids = [number for number, item in enumerate(subject.items) if "ids" in item.metadata]
    if not with_ids:
        raise Skipped("samples have no ids; with_metadata(ids=[...]) has errors name the row")
    for number, item in enumerate(subject.items):
        if "ids" not in item.metadata:
            seen = f"none, though sample {with_ids[0]} has one"
            raise CheckFailed("an id for each sample, or for none", seen, f"sample {number}", subject.at("__getitem__"))
        name = item.metadata["ids"][0]
        if name in index_by_id:
            seen = f"'{name}' for samples {index_by_id[name]} and {number}"
            raise CheckFailed("ids that differ", seen, "metadata 'ids'", subject.at("__getitem__"))
        index_by_id[name] = number
    return f"'{next(iter(index_by_id))}', ..." if len(index_by_id) > 1 else f"'{next(iter(index_by_id))}'"


@check(needs=[sample])
def same_twice(subject: DatasetSubject) -> str:
    """the same index gives the same sample, whatever was read before"""
    backwards = [subject.samples[i] for i in reversed(range(len(subject.items)))][::-1]
    for again in (backwards, read_samples(subject.samples)):
        different = first_difference(subject.items, again)
        if different:
            raise CheckFailed(*different, subject.at("__getitem__"))
    return f"{len(subject.items)} samples, forwards and backwards"


@check(needs=[same_twice])
def indices(subject: DatasetSubject) -> str:
    """indices from 0 to `len` - 1 are samples, others raise IndexError; -1 may be the last sample"""
    count = len(subject.samples)
    for index, allowed in ((count, None), (-1, count - 1), (-count - 1, None)):
        expected = "IndexError" + ("" if allowed is None else f", or sample {allowed}")
        position = f"dataset[{index}] of {count} samples"
        try:
            found = subject.samples[index]
        except IndexError:
            continue
        except Exception as error:  # the plugin may raise anything, but only IndexError ends a loop over the dataset
            seen = f"{type(error).__name__}: {error}"
            raise CheckFailed(expected, seen, position, subject.at("__getitem__")) from error
        if allowed is None or found != subject.samples[allowed]:
            raise CheckFailed(expected, f"{found!r}", position, subject.at("__getitem__"))
    return f"0 to {count - 1}"


@check(needs=[seqlens, same_twice])
def packing(subject: DatasetSubject) -> str:
    """samples are packed into a batch and unpacked again unchanged"""
    items, look_at = subject.items, subject.at("__getitem__")
    try:
        batch = gather(items)
        unpacked = split_samples(batch)
        order = list(reversed(range(len(items))))
        selected = split_samples(select(batch, order))[::-1]
        field = next(iter(batch.metadata["seqlens"]))
        parts = [sample for part in partition(batch, field, min(2, len(items))) for sample in split_samples(part)]
    except ReallmError as error:
        raise CheckFailed("samples with the same fields and dtypes", str(error), look_at=look_at) from error
    for found in (unpacked, selected):
        different = first_difference(items, found)
        assert different is None, different  # these are functions of the core, which accepted the samples
    assert len(parts) == len(items)
    return f"{n_samples(batch)} samples in {batch!r}"
