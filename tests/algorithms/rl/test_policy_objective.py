"""The loss of a policy: its gradient is that of the expected reward and of the KL divergence, however it is cut."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from reallm.algorithms.answer_scores import answer_token_logprobs_field, answer_values_field
from reallm.algorithms.rl.corrections import importance_weights
from reallm.algorithms.rl.policy_loss_settings import PolicyLossSettings
from reallm.algorithms.rl.policy_objective import PolicyObjective
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import select
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.training.engine import TrainEngine
from tests.helpers.tiny_config import TINY

SGD = OptimizerConfig(name="sgd", lr=1.0, schedule="constant", warmup_steps=0, max_grad_norm=0)
VOCABULARY, PROMPT, LENGTH = 4, (1, 2), 3


def model(seed: int = 3, vocab_size: int = VOCABULARY) -> ReaLModel:
    config = TINY.replace(init_std=0.4, vocab_size=vocab_size)
    return ReaLModel(config, seed=seed, dtype=torch.float64)


def answers(tokens: list[tuple[int, ...]], **fields: Tensor) -> NamedArray:
    """A batch of answers to PROMPT, a sample each; fields are of tokens, but for `norms`."""
    of_tokens = [(len(one),) for one in tokens]
    whole = {"input_ids": torch.tensor([x for one in tokens for x in (*PROMPT, *one)])}
    whole["prompt_lens"] = torch.tensor([len(PROMPT)] * len(tokens))
    seqlens: dict[str, Any] = {"input_ids": [(len(PROMPT) + len(one),) for one in tokens]}
    for name in fields:
        seqlens[name] = of_tokens if name != "norms" else [(1,)] * len(tokens)
    seqlens["prompt_lens"] = [(1,)] * len(tokens)
    return NamedArray(**whole, **fields).with_metadata(seqlens=seqlens)


def scored(actor: ReaLModel, tokens: list[tuple[int, ...]], temperature: float = 1.0) -> Tensor:
    """Log-probabilities [N] of answers, float64, by logits."""
    found = []
    for one in tokens:
        ids = torch.tensor([*PROMPT, *one])
        logits = actor(ids, torch.tensor([0, len(ids)])) / temperature
        found.append(logits.log_softmax(-1)[torch.arange(len(PROMPT) - 1, len(ids) - 1), ids[len(PROMPT) :]])
    return torch.cat(found)


def gradients(actor: ReaLModel, settings: PolicyLossSettings, batch: NamedArray, max_tokens: int = 4096) -> Tensor:
    """The gradient of the loss, as the change of the parameters by a step of SGD."""
    before = [parameter.detach().clone() for parameter in actor.network.parameters()]
    engine = TrainEngine(actor, SGD, total_steps=1, max_tokens_per_microbatch=max_tokens)
    engine.train_batch(batch, PolicyObjective(settings))
    return torch.cat(
        [(old - new.detach()).flatten() for old, new in zip(before, actor.network.parameters(), strict=True)]
    )


def autograd(actor: ReaLModel, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, list(actor.network.parameters()))
    return torch.cat([one.flatten() for one in found])


ALL = list(itertools.product(range(VOCABULARY), repeat=LENGTH))
"""All answers of three tokens."""


def test_the_gradient_is_that_of_the_expected_reward_and_the_kl_divergence():
    actor, reference = model(), model(seed=11)
    rewards = torch.randn(len(ALL), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logprobs, ref_logprobs = scored(actor, ALL), scored(reference, ALL).detach()
    probabilities = logprobs.view(-1, LENGTH).sum(1).exp()
    assert probabilities.sum().item() == pytest.approx(1)
    ratios = (logprobs - ref_logprobs).view(-1, LENGTH).sum(1)
    beta = 0.3
    exact = autograd(actor, (probabilities * (beta * ratios - rewards)).sum())

    # each answer weighs as much as it is likely; KL in the reward, with the sum over the answer for each of its tokens
    weights = probabilities.detach().repeat_interleave(LENGTH)
    norms = torch.zeros(len(ALL), dtype=torch.float64)
    norms[0] = 1.0
    detached = logprobs.detach()
    in_reward = (rewards - beta * ratios.detach()).repeat_interleave(LENGTH)
    fields = {"logprobs": detached, "weights": weights, "norms": norms}
    found = gradients(actor, PolicyLossSettings(), answers(ALL, advantages=in_reward, **fields))
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("estimator", ["k2", "k3_straight_through"])
def test_the_gradient_of_the_kl_divergence_of_tokens_in_the_loss(estimator):
    actor, reference = model(), model(seed=11)
    tokens = [(token,) for token in range(VOCABULARY)]
    logprobs, ref_logprobs = scored(actor, tokens), scored(reference, tokens).detach()
    exact = autograd(actor, (logprobs.exp() * (logprobs - ref_logprobs)).sum())
    norms = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    zeros = torch.zeros(VOCABULARY, dtype=torch.float64)
    fields = {"logprobs": logprobs.detach(), "ref_logprobs": ref_logprobs, "advantages": zeros, "norms": norms}
    batch = answers(tokens, weights=logprobs.detach().exp(), **fields)
    settings = PolicyLossSettings(beta=1.0, kl_estimate=estimator)
    torch.testing.assert_close(gradients(actor, settings, batch), exact, rtol=1e-6, atol=1e-9)

    # k3 times the ratio has it too, plain k3 and k1 have not
    with_ratio = PolicyLossSettings(beta=1.0)
    torch.testing.assert_close(gradients(model(), with_ratio, batch), exact, rtol=1e-6, atol=1e-9)
    plain = replace(with_ratio, kl_estimate="k3")
    assert not torch.allclose(gradients(model(), plain, batch), exact, rtol=0.1, atol=1e-3)


def off_policy_batch(actor: ReaLModel) -> NamedArray:
    """Answers of unequal lengths that older weights have sampled, one of them empty."""
    tokens = [(1, 2, 3), (3,), (), (0, 0, 2, 1), (2, 2)]
    n = sum(map(len, tokens))
    generator = torch.Generator().manual_seed(2)

    def noise(scale: float) -> Tensor:
        return scale * torch.randn(n, dtype=torch.float64, generator=generator)

    now = scored(actor, [one for one in tokens if one], 0.7).detach()
    return answers(
        tokens,
        logprobs=now + noise(0.4),
        old_logprobs=now + noise(0.4),
        ref_logprobs=now + noise(0.2),
        advantages=noise(1.0),
        weights=torch.rand(n, dtype=torch.float64, generator=generator),
        norms=torch.ones(len(tokens), dtype=torch.float64),
    )


OFF_POLICY = PolicyLossSettings(
    temperature=0.7, beta=0.1, entropy_coef=0.05, eps_high=0.3, delta=1.5, correction="truncate"
)
KINDS = [
    {}, {"level": "sequence"}, {"kind": "cispo", "eps_high": 2.0}, {"kind": "sapo"}, {"kind": "vespo"},
    {"correction": "mask", "correction_level": "geometric", "correction_lowest": 0.5},
    {"correction_level": "sequence"},
]  # fmt: skip


@pytest.mark.parametrize("change", KINDS, ids=lambda change: str(change) or "clip")
def test_any_order_and_any_cut_give_the_same_gradient(change):
    settings = replace(OFF_POLICY, **change)
    batch = off_policy_batch(model())
    whole = gradients(model(), settings, batch)
    assert whole.abs().max() > 1e-4
    shuffled = select(batch, [3, 1, 4, 0, 2])
    torch.testing.assert_close(gradients(model(), settings, shuffled, max_tokens=5), whole, rtol=1e-6, atol=1e-10)


def test_tokens_that_are_not_trained_on_may_have_any_probability():
    batch = off_policy_batch(model())
    batch["weights"][[1, 6]] = 0
    whole = gradients(model(), OFF_POLICY, batch)
    for name in ("old_logprobs", "ref_logprobs", "logprobs"):
        batch[name][1], batch[name][6] = 1e4, -1e4
    assert torch.equal(gradients(model(), OFF_POLICY, batch), whole)


def test_the_first_ratio_is_one_whatever_was_sampled_from():
    batch = off_policy_batch(model())
    fields = {key: batch[key] for key in batch if key != "old_logprobs"}
    without = NamedArray(**fields).with_metadata(seqlens={key: batch.metadata["seqlens"][key] for key in fields})
    engine = TrainEngine(model(), SGD, total_steps=1, max_tokens_per_microbatch=4096)
    settings = replace(OFF_POLICY, correction="none", beta=0.0, entropy_coef=0.0)
    metrics = engine.train_batch(without, PolicyObjective(settings))
    weighted = float((batch["weights"] * batch["advantages"]).sum())
    assert metrics["loss"] == pytest.approx(-weighted / 5)  # the ratio is exactly 1, so that losses are the advantages
    assert metrics["clip_ratio/region_mean"] == 0
    now = scored(model(), [(1, 2, 3), (3,), (0, 0, 2, 1), (2, 2)], 0.7).detach()
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(
        float((now - batch["logprobs"]).abs().max())
    )


def test_the_weight_of_what_was_sampled_uses_the_old_policy():
    old, sampled = torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.5, -1.0, -0.5])
    lengths, mask = torch.tensor([2, 1]), torch.ones(3, dtype=torch.bool)

    def found(correction: str, level: str = "token", **bounds: float) -> list[float]:
        weights = importance_weights(old, sampled, lengths, mask, correction=correction, level=level, **bounds)
        return weights.tolist()

    e = torch.e
    assert found("truncate", highest=1.2) == pytest.approx([1.2, e**-1, 1])
    assert found("mask", lowest=0.5, highest=2.0) == pytest.approx([e**0.5, 0, 1])
    assert found("truncate", "sequence") == pytest.approx([e**-0.5, e**-0.5, 1])
    assert found("truncate", "geometric") == pytest.approx([e**-0.25, e**-0.25, 1])
    assert found("none") == [1, 1, 1]


def test_scores_of_tokens_without_training():
    actor, critic = model(), ReaLModel(TINY.replace(is_critic=True, vocab_size=VOCABULARY), seed=3, dtype=torch.float64)
    tokens = [(1, 2, 3), (3,), (), (0, 2)]
    batch = answers(tokens)
    found = answer_token_logprobs_field(actor, batch, "old", 5, 0.7)
    assert found.metadata["seqlens"]["old"] == ((3,), (1,), (0,), (2,))
    torch.testing.assert_close(
        found["old"].double(), scored(actor, [one for one in tokens if one], 0.7), rtol=1e-5, atol=1e-6
    )
    values = answer_values_field(critic, batch, "values", 5)["values"]
    expected = []
    for one in tokens:
        ids = torch.tensor([*PROMPT, *one])
        scores = critic.scores(ids, torch.tensor([0, len(ids)]))
        expected += scores[len(PROMPT) - 1 : len(ids) - 1].tolist()
    assert values.tolist() == pytest.approx(expected)
