"""The loss of a reward model: that of its formula, however a batch is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reallm.algorithms.losses import reward_model_loss
from reallm.algorithms.rw.config import RWConfig
from reallm.algorithms.rw.interface import RWInterface
from reallm.config.args import CriticArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import select
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from reallm.training.engine import TrainEngine
from tests.helpers.preferences import PAIRS, Data, context, pairs
from tests.helpers.tiny_config import TINY

SGD = OptimizerConfig(name="sgd", lr=1.0, schedule="constant", warmup_steps=0, max_grad_norm=0)


def config(**settings: Any) -> RWConfig:
    return RWConfig(**{"model": CriticArgs(path="models/base"), "dataset": Data(), **settings})


def critic(dtype: torch.dtype = torch.float64) -> ReaLModel:
    return ReaLModel(TINY.replace(init_std=0.3, is_critic=True), seed=3, dtype=dtype)


def step(settings: RWConfig, batch: NamedArray, max_tokens: int = 10_000) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The metrics of a step and its gradients: what plain gradient descent with a rate of 1 changes."""
    model = critic()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    engine = TrainEngine(model, SGD, total_steps=10, max_tokens_per_microbatch=max_tokens)
    metrics = RWInterface(settings).train_step(engine, batch, context())
    return metrics, {name: before[name] - value.detach() for name, value in model.named_parameters()}


def plain_scores(model: ReaLModel, batch: NamedArray) -> Tensor:
    """The score [S] of the last token of each sequence, one sequence at a time."""
    scores, start = [], 0
    for length in [n for sample in batch.metadata["seqlens"]["input_ids"] for n in sample]:
        with torch.no_grad():
            scores.append(model(batch["input_ids"][start : start + length], torch.tensor([0, length]))[-1])
        start += length
    return torch.stack(scores)


@pytest.mark.parametrize("center_coef", [0.0, 0.1])
def test_the_loss_is_a_mean_over_prompts_of_means_over_their_pairs(center_coef: float) -> None:
    batch, by_prompt = pairs(), []
    for row in range(len(PAIRS)):
        one = select(batch, [row])
        scores = plain_scores(critic(), one)
        by_prompt.append(reward_model_loss(scores[0::2], scores[1::2], one["margins"], center_coef).mean().item())
    metrics, _ = step(config(center_coef=center_coef), batch)
    assert metrics["loss"] == pytest.approx(sum(by_prompt) / len(by_prompt), rel=1e-6)


def test_metrics_are_means_over_prompts() -> None:
    batch = pairs([sequences[:2] for sequences in PAIRS])
    scores = plain_scores(critic(), batch)
    chosen, rejected = scores[0::2], scores[1::2]
    metrics, _ = step(config(), batch)
    assert metrics["accuracy"] == (chosen > rejected).double().mean().item()
    assert metrics["margin"] == pytest.approx((chosen - rejected).mean().item(), rel=1e-5)
    assert metrics["rewards/chosen"] == pytest.approx(chosen.mean().item(), rel=1e-5)
    assert metrics["rewards/rejected"] == pytest.approx(rejected.mean().item(), rel=1e-5)
    assert set(RWInterface.metric_names) <= metrics.keys()


@pytest.mark.parametrize("max_tokens", [1, 40])
def test_gradients_do_not_depend_on_how_a_batch_is_cut(max_tokens: int) -> None:
    """Not even between the pairs of a prompt."""
    whole_metrics, whole = step(config(center_coef=0.1), pairs())
    metrics, cut = step(config(center_coef=0.1), pairs(), max_tokens)
    for key, value in whole_metrics.items():
        assert metrics[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key
    for parameter, gradient in whole.items():
        # scores are rounded to float32 before the loss
        torch.testing.assert_close(cut[parameter], gradient, rtol=1e-5, atol=1e-6 * gradient.abs().max().item())


def test_margins_and_centring_change_the_gradient() -> None:
    _, plain = step(config(), pairs().with_fields(margins=torch.zeros(6)))
    for settings, batch in [
        (config(), pairs()),
        (config(center_coef=0.1), pairs().with_fields(margins=torch.zeros(6))),
    ]:
        _, changed = step(settings, batch)
        assert any((changed[name] - plain[name]).norm() > 1e-3 * plain[name].norm() for name in plain)


def test_a_reward_model_learns_its_pairs() -> None:
    model = critic(torch.float32)
    engine = TrainEngine(model, OptimizerConfig(lr=1e-3, schedule="constant"), 40, max_tokens_per_microbatch=100)
    interface = RWInterface(config())
    for _ in range(40):
        metrics = interface.train_step(engine, pairs(), context())
    assert metrics["accuracy"] == 1
    assert metrics["loss"] < 0.3


def test_centring_must_not_be_negative() -> None:
    with pytest.raises(ConfigError, match=r"center_coef=-0.1 must be at least 0"):
        config(center_coef=-0.1)
