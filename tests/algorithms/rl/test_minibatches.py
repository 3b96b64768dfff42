"""Mini-batches of whole prompts."""

from __future__ import annotations

import torch

from reallm.algorithms.rl.minibatches import minibatches
from reallm.data.batching import n_samples, split_groups
from reallm.data.namedarray import NamedArray


def answers(counts: list[int]) -> NamedArray:
    """A batch of prompts with so many answers of one token each."""
    return NamedArray(input_ids=torch.arange(sum(counts))).with_metadata(
        seqlens={"input_ids": [(1,) * n for n in counts]}, ids=[f"prompt-{i}" for i in range(len(counts))]
    )


def test_the_answers_to_a_prompt_stay_together_and_none_is_lost() -> None:
    units = split_groups(answers([3, 1, 2, 2, 4]), {"input_ids": 1})
    found = minibatches(units, 2, seed=3)
    groups = [set(one.metadata["groups"]) for one in found]
    assert sorted(map(len, groups)) == [2, 3]
    assert not groups[0] & groups[1]
    assert sorted(torch.cat([one["input_ids"] for one in found]).tolist()) == list(range(12))
    assert all(one["input_ids"].tolist() == sorted(one["input_ids"].tolist()) for one in found)


def test_prompts_that_are_samples_are_cut_alike() -> None:
    batch = answers([3, 1, 2, 2, 4])
    as_units = minibatches(split_groups(batch, {"input_ids": 1}), 2, seed=3)
    as_samples = minibatches(batch, 2, seed=3)
    assert [one["input_ids"].tolist() for one in as_samples] == [one["input_ids"].tolist() for one in as_units]


def test_the_seed_chooses_and_one_mini_batch_is_the_batch() -> None:
    batch = answers([1] * 16)
    first, again, other = ([one["input_ids"].tolist() for one in minibatches(batch, 4, seed)] for seed in (1, 1, 2))
    assert first == again != other
    assert minibatches(batch, 1, 1) == [batch]


def test_without_prompts_enough_some_are_empty() -> None:
    assert sorted(n_samples(one) for one in minibatches(answers([2, 2]), 3, seed=1)) == [0, 1, 1]
