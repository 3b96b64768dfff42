"""Mixtures: shares of an epoch, order of samples, names of samples."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reallm.data.mixture import MixedSamples, apportion
from reallm.data.namedarray import NamedArray
from reallm.data.sampler import MixtureSampler
from reallm.errors import ConfigError


class Numbers:
    """`n` samples, whose ids are their numbers."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int, /) -> NamedArray:
        if not 0 <= index < self.n:
            raise IndexError(index)
        array = NamedArray(x=torch.tensor([index]))
        return array.with_metadata(seqlens={"x": [[1]]}, ids=[f"rows.jsonl:{index}"])


def mixed(weights: dict[str, float] | None = None, **sizes: int) -> MixedSamples:
    return MixedSamples({name: Numbers(n) for name, n in sizes.items()}, weights or {})


def sampler(samples: MixedSamples, *, seed: int = 1, batch_size: int = 7) -> MixtureSampler:
    sizes = tuple(map(len, samples.sources.values()))
    names = tuple(samples.sources)
    quotas = tuple(samples.quotas)
    return MixtureSampler(len(samples), batch_size, 9, None, seed, names=names, sizes=sizes, quotas=quotas)


def epoch(plan: MixtureSampler, number: int) -> list[int]:
    first = number * plan.steps_per_epoch + 1
    return [row for step in range(first, first + plan.steps_per_epoch) for row in plan.rows(step)]


def test_samples_are_numbered_source_after_source_and_named_after_it() -> None:
    samples = mixed(a=2, b=1, c=2)
    assert len(samples) == 5
    ids = [samples[i].metadata["ids"][0] for i in range(5)]
    assert ids == ["a/rows.jsonl:0", "a/rows.jsonl:1", "b/rows.jsonl:0", "c/rows.jsonl:0", "c/rows.jsonl:1"]
    for index in (5, -1):
        with pytest.raises(IndexError):
            samples[index]


def test_an_epoch_has_as_many_samples_as_all_sources_by_weight() -> None:
    plan = sampler(mixed({"a": 0.3, "b": 0.7}, a=10, b=90))
    for number in range(4):
        rows = epoch(plan, number)
        assert len(rows) == 100
        assert sum(row < 10 for row in rows) == 30
        assert Counter(row for row in rows if row < 10) == dict.fromkeys(range(10), 3)  # three whole passes
        assert sum(row >= 10 for row in rows) == 70
    assert len({row for row in epoch(plan, 0) if row >= 10}) == 70


def test_a_source_goes_on_where_the_epoch_before_stopped() -> None:
    plan = sampler(mixed({"a": 1, "b": 1}, a=30, b=70))  # 50 of each: b is read once in 1.4 epochs
    taken = [row - 30 for number in range(7) for row in epoch(plan, number) if row >= 30]
    passes = [taken[start : start + 70] for start in range(0, len(taken), 70)]
    assert [sorted(one) for one in passes] == [list(range(70))] * 5
    assert passes[0] != passes[1]


def test_without_weights_each_sample_is_taken_once_an_epoch() -> None:
    assert sorted(epoch(sampler(mixed(a=13, b=8)), 3)) == list(range(21))


def test_the_order_depends_on_the_seed_alone_and_sources_take_turns() -> None:
    samples = mixed({"a": 0.5, "b": 0.5}, a=40, b=60)
    assert epoch(sampler(samples), 2) == epoch(sampler(samples), 2)
    assert epoch(sampler(samples), 2) != epoch(sampler(samples, seed=2), 2)
    assert epoch(sampler(samples), 2) == epoch(sampler(samples, batch_size=13), 2)
    assert all(0 < sum(row < 40 for row in epoch(sampler(samples), 0)[i : i + 25]) < 25 for i in range(0, 100, 25))


def test_a_step_of_a_resumed_run_is_that_of_the_whole_run() -> None:
    samples = mixed({"a": 0.2, "b": 0.8}, a=5, b=21)
    whole = sampler(samples)
    steps = [whole.rows(step) for step in range(1, whole.total_steps + 1)]
    assert [sampler(samples).rows(step) for step in range(17, whole.total_steps + 1)] == steps[16:]


def test_the_report() -> None:
    told = mixed({"a": 0.3, "b": 0.7}, a=10, b=90).report()
    assert told == "an epoch has 100 samples of 2 sources: a 30.0%, 3 passes over 10; b 70.0%, 0.778 passes over 90"
    assert mixed(a=1000, b=9).report() == "1,009 samples of 2 sources: a 1,000, b 9"


def test_a_weight_that_gives_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.mix\.b\.weight=1e-05 gives no sample of an epoch of 20; raise it"):
        _ = mixed({"a": 1, "b": 1e-5}, a=10, b=10).quotas


@given(st.integers(0, 10**6), st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=9))
def test_shares_are_whole_and_within_one_of_exact(total: int, weights: list[float]) -> None:
    shares: Any = apportion(total, weights)
    assert sum(shares) == total
    assert all(abs(n - total * weight / sum(weights)) < 1 + 1e-6 for n, weight in zip(shares, weights, strict=True))
