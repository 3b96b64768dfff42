"""Answers that are trained on some steps after they were sampled."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from reallm.algorithms.context import CallContext
from reallm.algorithms.rl.rollout import sampled_logprobs, staleness
from reallm.data.batching import cu_seqlens, split_groups
from reallm.data.namedarray import NamedArray
from reallm.data.serialization import from_bytes, to_bytes
from reallm.training.engine import TrainEngine
from reallm.training.sequence_scores import answer_mask
from tests.algorithms.grpo.steps import Steps
from tests.algorithms.three_roles import OPTIMIZER

DECOUPLED: dict[str, Any] = {"old_logprobs": "inference", "importance_sampling_correction": "truncate"}


class Seen:
    """Ages of what an actor is trained on, and how its log-probabilities differ from those of sampling."""

    def __init__(self, steps: Steps) -> None:
        self.ages: list[int] = []
        self.differences: list[torch.Tensor] = []
        self.batches: list[NamedArray] = []
        interface = steps.interfaces["actor"]
        self._train_step, interface.train_step = interface.train_step, self.train_step

    def train_step(self, engine: TrainEngine, batch: NamedArray, context: CallContext) -> dict[str, float]:
        self.ages.append(staleness(batch, context, "actor"))
        self.batches.append(batch)
        current = engine.model.token_logprobs(batch["input_ids"], cu_seqlens(batch, "input_ids"))
        answers = split_groups(batch, dict.fromkeys(batch, 1))
        self.differences.append((current[answer_mask(answers)] - sampled_logprobs(batch)).double())
        return self._train_step(engine, batch, context)


@pytest.mark.parametrize("k", [1, 2])
def test_each_step_trains_on_what_was_sampled_so_many_steps_before(k: int) -> None:
    steps = Steps.of(async_steps=k)
    seen = Seen(steps)
    metrics = steps.train(1, 4, 4)
    assert seen.ages == [min(step, k) for step in range(4)]
    assert [step["train/staleness"] for step in metrics] == seen.ages
    assert steps.executor.queue.steps == []


def test_with_weights_that_do_not_change_all_numbers_are_those_without_a_queue() -> None:
    still = replace(OPTIMIZER, lr=1e-300)
    expected = Steps.of(optimizer=still).train(1, 3, 3)
    found = Steps.of(optimizer=still, async_steps=2).train(1, 3, 3)
    ages = [step.pop("train/staleness") for step in found]
    assert ages == [0, 1, 2]
    for step, same in zip(found, expected, strict=True):
        assert step == pytest.approx(same, rel=1e-6, abs=1e-6)  # the ratio is to log-probabilities in float32


def test_the_ratio_is_to_the_policy_that_sampled() -> None:
    """Without a correction of its own, the clipped loss compares with sampling."""
    steps = Steps.of(async_steps=1, epsilon=0.01)
    seen = Seen(steps)
    metrics = steps.train(1, 2, 2)
    ratio = seen.differences[1].exp()
    assert (ratio - 1).abs().max() > 0.02  # the policy has moved
    mean_advantages = steps.interfaces["actor"].judge(seen.batches[1]).advantages_of_tokens
    clipped = torch.minimum(ratio * mean_advantages, ratio.clamp(0.99, 1.01) * mean_advantages)
    assert metrics[1]["train/loss"] == pytest.approx(-float(clipped.mean()), rel=1e-5)
    assert metrics[0]["train/clip_ratio/region_mean"] == 0 < metrics[1]["train/clip_ratio/region_mean"]


def test_decoupled_the_ratio_is_to_the_present_policy_and_the_loss_is_weighed_by_the_age() -> None:
    """With one optimizer step the first ratio is 1, and the weight is that of AReaL's decoupled PPO, bounded."""
    steps = Steps.of(async_steps=1, importance_sampling_clip_max=1.05, **DECOUPLED)
    seen = Seen(steps)
    metrics = steps.train(1, 2, 2)
    weights = seen.differences[1].exp().clamp(max=1.05)
    advantages = steps.interfaces["actor"].judge(seen.batches[1]).advantages_of_tokens
    assert metrics[1]["train/sampling/importance_sampling_ratio/mean"] == pytest.approx(float(weights.mean()), rel=1e-6)
    assert metrics[1]["train/loss"] == pytest.approx(-float((weights * advantages).mean()), rel=1e-5)
    assert metrics[1]["train/clip_ratio/region_mean"] == 0


def test_decoupled_with_several_optimizer_steps_a_call_before_them_gives_the_old_policy() -> None:
    steps = Steps.of(async_steps=1, num_minibatches=2, **DECOUPLED)
    seen = Seen(steps)
    steps.train(1, 2, 2)
    old = seen.batches[1]["old_logprobs"] - sampled_logprobs(seen.batches[1])
    torch.testing.assert_close(old.double(), seen.differences[1], atol=1e-5, rtol=0)
    assert seen.ages == [0, 2]  # in optimizer steps


def test_a_queue_goes_on_where_it_was_saved() -> None:
    steps = Steps.of(async_steps=2)
    whole = Seen(steps)
    steps.train(1, 1, 4)
    saved = {name: from_bytes(to_bytes(outputs)) for name, outputs in steps.executor.queue.state().items()}
    assert set(saved) == {(2, "actor_gen"), (3, "actor_gen")}
    steps.train(2, 3, 4)
    other = Steps.of(async_steps=2)
    assert other.executor.queue.load_state(saved)
    assert other.executor.queue.missing(2, 4) == [4]
    seen = Seen(other)
    other.train(2, 3, 4)
    for key in ("input_ids", "logprobs"):
        assert [batch[key].tolist() for batch in seen.batches] == [batch[key].tolist() for batch in whole.batches[1:]]


def test_a_queue_of_older_rollouts_than_allowed_or_of_other_keys_is_not_loaded() -> None:
    steps = Steps.of(async_steps=2)
    steps.train(1, 1, 4)
    saved = steps.executor.queue.state()
    for settings in ({"async_steps": 1}, {"async_steps": 0}):
        queue = Steps.of(**settings).executor.queue
        assert not queue.load_state(saved)
        assert queue.steps == []
    assert not steps.executor.queue.load_state({(2, "actor_gen"): NamedArray()})
    assert Steps.of(async_steps=3).executor.queue.load_state(saved)
    assert Steps.of().executor.queue.load_state({})
