"""Checks of which samples there are, in which order, and who holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from reallm.data.datasets import Samples
from reallm.data.namedarray import NamedArray
from reallm.errors import DataError
from reallm_devkit.testing.checks import CheckFailed, check
from reallm_devkit.testing.datasets.items import same_twice
from reallm_devkit.testing.datasets.subject import SEED, DatasetSubject, digest, first_difference, key, read
from reallm_devkit.testing.process_state import random_states

RANKS = 4
"""Most data-parallel ranks that are tried."""


@check(needs=[same_twice])
def seed(subject: DatasetSubject) -> str:
    """the seed alone decides on the order: constructed again, the samples are the same; another seed loses none"""
    look_at = subject.at("__init__")
    with random_states(20_000_023):
        again = read(subject.make())
    different = first_difference(subject.items, again)
    if different:
        expected, seen, where = different
        raise CheckFailed(f"with seed {SEED} again: {expected}", seen, where, look_at)
    other = subject.make(seed=SEED + 1)
    names, others = _names(subject.samples), _names(other)
    if Counter(names) != Counter(others):
        expected = f"with seed {SEED + 1}: the same {len(names)} samples in any order"
        raise CheckFailed(expected, _lost(names, others), look_at=look_at)
    return f"{len(names)} samples, {'another' if names != others else 'the same'} order with another seed"


@check(needs=[seed])
def ranks(subject: DatasetSubject) -> str:
    """together the data-parallel ranks hold each sample once, the same as if there were one rank"""
    look_at = subject.at("__init__")
    whole = _contents(subject.samples)
    tried = 1
    for dp_size in range(2, RANKS + 1):
        try:
            shards = [_contents(subject.make(dp_rank=rank, dp_size=dp_size)) for rank in range(dp_size)]
        except DataError:
            if len(whole) >= dp_size:
                raise
            break  # fewer rows than ranks may be refused
        held = Counter(pair for shard in shards for pair in shard)
        for (name, content), count in held.items():
            if (name, content) not in whole:
                known = any(name == other for other, _ in whole)
                seen = f"'{_readable(name)}', which is {'another sample' if known else 'not there'} with one rank"
                raise CheckFailed("the samples that there are with one rank", seen, f"dp_size={dp_size}", look_at)
            if count > whole[name, content]:
                owners = [str(rank) for rank, shard in enumerate(shards) if (name, content) in shard]
                seen = f"'{_readable(name)}' is on rank{'s' if len(owners) > 1 else ''} {' and '.join(owners)}"
                raise CheckFailed("each sample on one rank, once", seen, f"dp_size={dp_size}", look_at)
        missing = whole - held
        if missing:
            seen = f"{missing.total()} of {whole.total()} on no rank, such as '{_readable(next(iter(missing))[0])}'"
            raise CheckFailed("each sample on one rank", seen, f"dp_size={dp_size}", look_at)
        tried = dp_size
    return f"{whole.total()} samples on 1 to {tried} ranks"


def _contents(samples: Samples) -> Counter[tuple[str, str]]:
    return Counter((key(sample), digest(sample)) for sample in _all(samples))


def _names(samples: Samples) -> list[str]:
    return [key(sample) for sample in _all(samples)]


def _all(samples: Samples) -> Iterator[NamedArray]:
    return (samples[i] for i in range(len(samples)))


def _lost(names: list[str], others: list[str]) -> str:
    missing, new = Counter(names) - Counter(others), Counter(others) - Counter(names)
    parts = [f"{len(others)} samples"]
    parts += [f"without '{_readable(next(iter(missing)))}'"] if missing else []
    parts += [f"with '{_readable(next(iter(new)))}'"] if new else []
    return ", ".join(parts)


def _readable(name: str) -> str:
    """An id as it is; of a digest, which nobody can read, the beginning."""
    return f"{name[:8]}... (no id)" if len(name) == 64 and name.isalnum() else name
