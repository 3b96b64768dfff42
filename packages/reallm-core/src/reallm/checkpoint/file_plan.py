"""Which rank writes which tensors of a checkpoint, and into which files. Pure; the same on all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from reallm.checkpoint.save import plan_shards
from reallm.hf.file_names import WEIGHTS_NAME


class File(NamedTuple):
    """A file and the names of the tensors in it."""

    name: str
    writer: int
    tensors: tuple[str, ...]


def assign_writers(
    sizes: Mapping[str, int], near: Mapping[str, Sequence[int]], writers: Sequence[int]
) -> dict[int, list[str]]:
    """Writer -> its tensors, in their order: nearly the same bytes for all, and few that it must be sent.

    The largest are dealt out first, each to the least busy of those who have a part of it, unless that one would have
    more than its share and there is a less busy one elsewhere.

    Args:
        sizes: bytes of each tensor.
        near: the writers that have a part of it.
        writers: ranks.
    """
    order = {name: number for number, name in enumerate(sizes)}
    fair = sum(sizes.values()) / len(writers)
    loads = dict.fromkeys(writers, 0)
    dealt: dict[int, list[str]] = {writer: [] for writer in writers}
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        chosen = min(near[name], key=loads.__getitem__)
        if loads[chosen] + sizes[name] > fair:
            chosen = min((chosen, *writers), key=loads.__getitem__)
        loads[chosen] += sizes[name]
        dealt[chosen].append(name)
    return {writer: sorted(names, key=order.__getitem__) for writer, names in dealt.items()}


def plan_files(
    dealt: Mapping[int, Sequence[str]], sizes: Mapping[str, int], max_shard_size: int | str = "5GB"
) -> list[File]:
    """Files of at most `max_shard_size`, or of a single larger tensor, named as transformers names them.

    Raises:
        ConfigError: `max_shard_size` is no size.
    """
    shards = [
        (writer, tuple(shard))
        for writer, names in dealt.items()
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
    """The files that are written at the same time, one of each writer."""
    nth: dict[int, int] = {}
    found: list[list[File]] = []
    for file in files:
        number = nth.get(file.writer, 0)
        nth[file.writer] = number + 1
        if number == len(found):
            found.append([])
        found[number].append(file)
    return found
