"""Checks of the order of samples under a seed, and of their distribution over data-parallel ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from reallm.data.datasets import Samples
from reallm.data.namedarray import NamedArray
from reallm.errors import DataError
from reallm_devkit.testing.checks import CheckFailed, check
from reallm_devkit.testing.datasets.items import same_twice
from reallm_devkit.testing.datasets.subject import (
    SEED,
    DatasetSubject,
    digest,
    first_difference,
    read_samples,
    sample_key,
)
from reallm_devkit.testing.process_state import seeded_generators

MAX_DP_SIZE = 4
"""The largest data-parallel size that is tried."""


@check(needs=[same_twice])
def seed(subject: DatasetSubject) -> str:
    """the seed alone determines the order: constructed again, the samples are the same; another seed loses none"""
    look_at = subject.at("__init__")
    with seeded_generators(20_000_023):
        again = read_samples(subject.make())
    different = first_difference(subject.items, again)
    if different:
        expected, seen, where = different
        raise CheckFailed(f"with seed {SEED} again: {expected}", seen, where, look_at)
    other = subject.make(seed=SEED + 1)
    keys, other_keys = _keys(subject.samples), _keys(other)
    if Counter(keys) != Counter(other_keys):
        expected = f"with seed {SEED + 1}: the same {len(keys)} samples in any order"
        raise CheckFailed(expected, _key_difference(keys, other_keys), look_at=look_at)
    return f"{len(keys)} samples, {'another' if keys != other_keys else 'the same'} order with another seed"


@check(needs=[seed])
def ranks(subject: DatasetSubject) -> str:
    """together the data-parallel ranks hold each sample once, the same ones as a single rank"""
    look_at = subject.at("__init__")
    whole = _contents(subject.samples)
    tried = 1
    for dp_size in range(2, MAX_DP_SIZE + 1):
        try:
            shards = [_contents(subject.make(dp_rank=rank, dp_size=dp_size)) for rank in range(dp_size)]
        except DataError:
            if len(whole) >= dp_size:
                raise
            break  # fewer rows than ranks may be refused
        held = Counter(pair for shard in shards for pair in shard)
        for (name, content), count in held.items():
            if (name, content) not in whole:
                is_changed = any(name == other for other, _ in whole)
                seen = f"'{_readable(name)}', which is {'another sample' if is_changed else 'not there'} with one rank"
                raise CheckFailed("the samples that there are with one rank", seen, f"dp_size={dp_size}", look_at)
            if count > whole[name, content]:
                holders = [str(rank) for rank, shard in enumerate(shards) if (name, content) in shard]
                seen = f"'{_readable(name)}' is on rank{'s' if len(holders) > 1 else ''} {' and '.join(holders)}"
                raise CheckFailed("each sample on one rank, once", seen, f"dp_size={dp_size}", look_at)
        missing = whole - held
        if missing:
            seen = f"{missing.total()} of {whole.total()} on no rank, such as '{_readable(next(iter(missing))[0])}'"
            raise CheckFailed("each sample on one rank", seen, f"dp_size={dp_size}", look_at)
        tried = dp_size
    return f"{whole.total()} samples on 1 to {tried} ranks"


def _contents(samples: Samples) -> Counter[tuple[str, str]]:
    return Counter((sample_key(sample), digest(sample)) for sample in _iterate(samples))


def _keys(samples: Samples) -> list[str]:
    return [sample_key(sample) for sample in _iterate(samples)]


def _iterate(samples: Samples) -> Iterator[NamedArray]:
    return (samples[i] for i in range(len(samples)))


def _key_difference(keys: list[str], others: list[str]) -> str:
    missing, new = Counter(keys) - Counter(others), Counter(others) - Counter(keys)
    parts = [f"{len(others)} samples"]
    parts += [f"without '{_readable(next(iter(missing)))}'"] if missing else []
    parts += [f"with '{_readable(next(iter(new)))}'"] if new else []
    return ", ".join(parts)


def _readable(name: str) -> str:
    """An id in full; only the first digits of a digest."""
    return f"{name[:8]}... (no id)" if len(name) == 64 and name.isalnum() else name
