"""Plans the tensors and files of a checkpoint that each rank writes. Pure functions; same results on all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from reallm.checkpoint.save import plan_shards
from reallm.hf.file_names import WEIGHTS_NAME


class File(NamedTuple):
    """A file, the rank that writes it, and the names of its tensors."""

    name: str
    writer: int
    tensors: tuple[str, ...]


def assign_writers(
    sizes: Mapping[str, int], owners: Mapping[str, Sequence[int]], writers: Sequence[int]
) -> dict[int, list[str]]:
    """Writer -> its tensors, in order: nearly the same number of bytes for all, of which it must receive few.

    Largest first, each tensor is assigned to the least busy of its owners, unless that owner would exceed its fair
    share and another writer is less busy.

    Args:
        sizes: bytes of each tensor.
        owners: the writers that hold a part of each tensor.
        writers: ranks that write.
    """
    order = {name: number for number, name in enumerate(sizes)}
    fair_share = sum(sizes.values()) / len(writers)
    loads = dict.fromkeys(writers, 0)
    assigned: dict[int, list[str]] = {writer: [] for writer in writers}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        writer = min(owners[name], key=loads.__getitem__)
        if loads[writer] + sizes[name] > fair_share:
            writer = min((writer, *writers), key=loads.__getitem__)
        loads[writer] += sizes[name]
        assigned[writer].append(name)
    return {writer: sorted(names, key=order.__getitem__) for writer, names in assigned.items()}


def plan_files(
    assigned: Mapping[int, Sequence[str]], sizes: Mapping[str, int], max_shard_size: int | str = "5GB"
) -> list[File]:
    """Files of at most `max_shard_size`, or of a single larger tensor, named as transformers names them.

    Args:
        assigned: writer -> its tensors.
        sizes: bytes of each tensor.
        max_shard_size: maximum size of a file, in bytes or with a unit.

    Raises:
        ConfigError: `max_shard_size` is not a size.
    """
    shards = [
        (writer, tuple(shard))
        for writer, names in assigned.items()
        for shard in plan_shards({name: sizes[name] for name in names}, max_shard_size).values()
        if shard
    ]
    if len(shards) == 1:
        return [File(WEIGHTS_NAME, *shards[0])]
    return [
        File(f"model-{number:05d}-of-{len(shards):05d}.safetensors", writer, names)
        for number, (writer, names) in enumerate(shards, 1)
    ]


def write_rounds(files: Sequence[File]) -> list[list[File]]:
    """Group files into rounds in which each writer writes at most one file."""
    n_files: dict[int, int] = {}
    rounds: list[list[File]] = []
    for file in files:
        number = n_files.get(file.writer, 0)
        n_files[file.writer] = number + 1
        if number == len(rounds):
            rounds.append([])
        rounds[number].append(file)
    return rounds
