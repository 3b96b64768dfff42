"""Advantages: the formulas, by a loop over groups; exactly 0 where nothing differs."""

from __future__ import annotations

import statistics

import pytest
import torch

from reallm.algorithms.rl.advantages import (
    batch_advantages,
    greedy_advantages,
    group_advantages,
    normalized_then_summed_advantages,
)

REWARDS = torch.tensor([1.0, 0.0, 0.5, 2.0, -1.0, 0.25, 0.25])
GROUPS = torch.tensor([7, 3, 7, 3, 7, 3, 9])


def by_loop(baseline: str, scale: str) -> list[float]:
    values, groups = REWARDS.tolist(), GROUPS.tolist()
    found = []
    for i, (reward, group) in enumerate(zip(values, groups, strict=True)):
        of_group = [one for one, other in zip(values, groups, strict=True) if other == group]
        others = [one for j, (one, other) in enumerate(zip(values, groups, strict=True)) if other == group and j != i]
        if len(set(of_group)) == 1:
            found.append(0.0)
            continue
        advantage = reward - statistics.fmean(of_group if baseline == "mean" else others)
        if scale != "none":
            advantage /= statistics.stdev(of_group if scale == "group" else values) + 1e-4
        found.append(advantage)
    return found


@pytest.mark.parametrize("baseline", ["mean", "others"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_of_groups_in_any_order(baseline, scale):
    found = group_advantages(REWARDS, GROUPS, baseline=baseline, scale=scale)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(by_loop(baseline, scale), abs=1e-12)


@pytest.mark.parametrize("baseline", ["mean", "others"])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_equal_rewards_have_no_advantage_at_all(baseline, scale):
    groups = torch.tensor([0] * 8 + [1] * 8)
    rewards = torch.tensor([0.2] * 8 + [0.95] * 7 + [0.0])
    found = group_advantages(rewards, groups, baseline=baseline, scale=scale)
    assert found[:8].eq(0).all()
    assert found[8:15].eq(found[8]).all()
    assert 0 < found[8] < 5
    assert group_advantages(rewards[:8], groups[:8], baseline=baseline, scale=scale).eq(0).all()


def test_answers_without_a_reward_are_left_out():
    given = torch.tensor([True, True, False, True, True, True, True])
    rewards = REWARDS.masked_fill(~given, 1e6)
    found = group_advantages(rewards, GROUPS, given=given)
    assert found[2] == 0
    kept = [i for i in range(7) if i != 2]
    assert found[kept].tolist() == group_advantages(REWARDS[kept], GROUPS[kept]).tolist()
    assert group_advantages(rewards, GROUPS, given=torch.zeros(7, dtype=torch.bool)).eq(0).all()


def test_of_a_step():
    values = REWARDS.tolist()
    mean, std = statistics.fmean(values), statistics.stdev(values)
    assert batch_advantages(REWARDS, scale=True).tolist() == pytest.approx([(x - mean) / (std + 1e-4) for x in values])
    assert batch_advantages(REWARDS, scale=False).tolist() == pytest.approx([x - mean for x in values])
    assert batch_advantages(torch.full((3,), 0.2), scale=True).eq(0).all()
    assert batch_advantages(torch.tensor([0.3]), scale=True).tolist() == [0.0]


def test_against_the_most_likely_answer():
    baseline = torch.tensor([0.5] * 7)
    assert greedy_advantages(REWARDS, baseline, GROUPS).tolist() == pytest.approx((REWARDS - 0.5).tolist())
    scaled = greedy_advantages(REWARDS, baseline, GROUPS, scale="batch")
    assert scaled.tolist() == pytest.approx(((REWARDS - 0.5) / (REWARDS.std() + 1e-4)).tolist())


def test_several_rewards_each_normalized_in_its_group():
    parts = torch.stack((REWARDS, 10 * REWARDS.flip(0)), dim=1)
    weights = torch.tensor([1.0, 0.5])
    summed = group_advantages(parts[:, 0], GROUPS) + 0.5 * group_advantages(parts[:, 1], GROUPS)
    found = normalized_then_summed_advantages(parts, GROUPS, weights)
    assert found.tolist() == pytest.approx(batch_advantages(summed, scale=True).tolist())
