"""A step of policy and critic against plain formulas in float64, and the policy's gradient against all answers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from reallm.algorithms.ppo.actor import PPOActorInterface
from reallm.algorithms.ppo.advantages import judge
from reallm.algorithms.ppo.config import PPOArgs, PPOConfig
from reallm.algorithms.ppo.critic import PPOCriticInterface
from reallm.config.args import RewardArgs, SamplingArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.data.namedarray import NamedArray, merge
from reallm.engine.real_model import ReaLModel
from reallm.training.engine import TrainEngine
from tests.algorithms.ppo.test_config import config
from tests.helpers.preferences import context
from tests.helpers.tiny_config import TINY
from tests.helpers.tokenizers import tiny_tokenizer

SGD = OptimizerConfig(name="sgd", lr=1.0, schedule="constant", warmup_steps=0, max_grad_norm=0)
LENGTHS = [(4, 3), (2, 5), (3, 0), (5, 1), (2, 4)]
"""Tokens of each prompt and of its answer."""
TRUNCATED = [False, True, False, False, False]
GIVEN = [True, True, True, True, False]
TRAINED = [0, 1, 3]
"""The answers that are trained on: those with tokens and a reward."""
TEMPERATURE, KL, EPS = 0.7, 0.3, 0.2


def settings(**changes: Any) -> PPOConfig:
    args = {
        "gen": SamplingArgs(temperature=TEMPERATURE),
        "kl_ctl": KL,
        "ppo_n_minibatches": 1,
        "eps_clip": EPS,
        "discount": 0.9,
        "gae_lambda": 0.8,
        "truncated_reward": "bootstrap",
        "reward_output_scaling": 2.0,
        "reward_output_bias": 0.5,
        "max_reward_clip": 1.5,
    }
    return config({**args, **changes}, reward=RewardArgs(functions=["tests.rewards:accuracy"]), keep_rollouts=0)


def model(seed: int, *, is_critic: bool = False) -> ReaLModel:
    return ReaLModel(TINY.replace(init_std=0.3, is_critic=is_critic), seed=seed, dtype=torch.float64)


def field(name: str, values: Tensor, sizes: list[int]) -> NamedArray:
    return NamedArray(**{name: values}).with_metadata(seqlens={name: [(n,) for n in sizes]})


def batch_of_answers() -> NamedArray:
    """One answer to each prompt, with made-up numbers of the other models."""
    generator = torch.Generator().manual_seed(4)
    n = [answer for _, answer in LENGTHS]

    def draw(*size: int, std: float = 1.0) -> Tensor:
        return std * torch.randn(*size, dtype=torch.float64, generator=generator)

    def per_token(std: float = 1.0, mean: float = 0.0) -> Tensor:
        return mean + draw(sum(n), std=std)

    ids = torch.randint(0, TINY.vocab_size, (sum(map(sum, LENGTHS)),), generator=generator)
    ones = [1] * len(n)
    return merge(
        [
            field("input_ids", ids, [sum(one) for one in LENGTHS]),
            field("prompt_lens", torch.tensor([prompt for prompt, _ in LENGTHS]), ones),
            field("truncated", torch.tensor(TRUNCATED), ones),
            field("logprobs", per_token(mean=-4.0), n),
            field("ref_logprobs", per_token(mean=-4.0), n),
            field("values", per_token(), n),
            field("end_values", draw(len(n)), ones),
            field("reward_parts", torch.where(torch.tensor(GIVEN), draw(len(n)), 0.0), ones),
            field("reward_given", torch.tensor(GIVEN), ones),
        ]
    )


def answers(batch: NamedArray, name: str) -> list[Tensor]:
    """A field of the answers' tokens, one answer after another."""
    return list(batch[name].split([n for _, n in LENGTHS]))


def plain_logprobs(actor: ReaLModel, batch: NamedArray) -> list[Tensor]:
    """Log-probabilities of the answers' tokens from plain logits, one sequence at a time."""
    found = []
    for ids, (prompt, _) in zip(batch["input_ids"].split([sum(one) for one in LENGTHS]), LENGTHS, strict=True):
        logits = actor(ids, torch.tensor([0, len(ids)], dtype=torch.int32)) / TEMPERATURE
        logprobs = torch.log_softmax(logits, dim=-1)
        found.append(logprobs[prompt - 1 : -1].gather(1, ids[prompt:, None])[:, 0])
    return found


def plain_values(critic: ReaLModel, batch: NamedArray) -> list[Tensor]:
    """Values before the answers' tokens, one sequence at a time."""
    found = []
    for ids, (prompt, _) in zip(batch["input_ids"].split([sum(one) for one in LENGTHS]), LENGTHS, strict=True):
        found.append(critic(ids, torch.tensor([0, len(ids)], dtype=torch.int32))[prompt - 1 : -1])
    return found


def plain_advantages(
    batch: NamedArray, old: list[Tensor], args: PPOArgs
) -> tuple[list[list[float]], list[list[float]]]:
    """Advantages, before they are shifted and scaled, and returns of all answers, by a loop."""
    advantages, returns = [], []
    columns = (old, answers(batch, "ref_logprobs"), answers(batch, "values"))
    for i, (logprobs, ref, values) in enumerate(zip(*columns, strict=True)):
        rewards = (-KL * (logprobs - ref)).tolist()
        total = min(max((float(batch["reward_parts"][i]) - 0.5) * 2.0, -1.5), 1.5) if GIVEN[i] else 0.0
        if rewards:
            rewards[-1] += total
        following, carried, of_answer = (float(batch["end_values"][i]) if TRUNCATED[i] else 0.0), 0.0, []
        for reward, value in zip(reversed(rewards), reversed(values.tolist()), strict=True):
            carried = reward + args.discount * following - value + args.discount * args.gae_lambda * carried
            of_answer.append(carried)
            following = value
        advantages.append(of_answer[::-1])
        returns.append([one + value for one, value in zip(of_answer[::-1], values.tolist(), strict=True)])
    return advantages, returns


def trained(per_answer: list[Any]) -> Tensor:
    """The tokens that are trained on."""
    return torch.cat([torch.as_tensor(per_answer[i], dtype=torch.float64) for i in TRAINED])


def changed(model: ReaLModel, train: Any) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Metrics of a step of plain gradient descent with a rate of 1, and the gradients: what it changes."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    metrics = train(TrainEngine(model, SGD, total_steps=10, max_tokens_per_microbatch=8))
    return metrics, {name: before[name] - value.detach() for name, value in model.named_parameters()}


@pytest.mark.parametrize("with_old", [False, True], ids=["ratio-of-1", "ratios"])
def test_a_step_of_the_policy_is_that_of_the_formulas(with_old: bool) -> None:
    actor, batch, config = model(3), batch_of_answers(), settings()
    old = answers(batch, "logprobs")
    if with_old:  # some ratios are outside of the bounds
        noise = torch.linspace(-0.4, 0.4, sum(n for _, n in LENGTHS), dtype=torch.float64)
        old = list((torch.cat(plain_logprobs(actor, batch)).detach() + noise).split([n for _, n in LENGTHS]))
        batch = merge([batch, field("old_logprobs", torch.cat(old), [n for _, n in LENGTHS])])
    raw = trained(plain_advantages(batch, old, config.ppo)[0])
    advantages = (raw - raw.mean()) / (raw.var(correction=0) + 1e-8).sqrt()
    current = trained_logprobs = torch.cat([plain_logprobs(actor, batch)[i] for i in TRAINED])
    ratio = (current - (trained(old) if with_old else trained_logprobs.detach())).exp()
    loss = -torch.min(ratio * advantages, ratio.clamp(1 - EPS, 1 + EPS) * advantages).mean()
    expected = torch.autograd.grad(loss, list(actor.parameters()))
    names = [name for name, _ in actor.named_parameters()]
    interface = PPOActorInterface(config)
    where = context(tokenizer=tiny_tokenizer())
    metrics, found = changed(actor, lambda engine: interface.train_step(engine, batch, where))
    assert metrics["loss"] == pytest.approx(loss.item())
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    kl = torch.cat(old) - batch["ref_logprobs"]
    assert metrics["objective/kl"] == pytest.approx(float(kl.sum()) / len(LENGTHS))
    assert metrics["kl"] == pytest.approx(float(kl.mean()))


@pytest.mark.parametrize(
    "changes",
    [
        {"dual_clip": 1.21},
        {"entropy_coef": 0.1},
        {"kl_penalty": "loss"},
        {"kl_ctl": 0.01},
        {"adv_norm": False},
        {"gae_lambda": 1.0},
        {"max_reward_clip": 20.0},
        {"truncated_reward": "reward"},
    ],
    ids=str,
)
def test_no_setting_is_silently_ignored(changes: dict[str, Any]) -> None:
    actor, batch = model(3), batch_of_answers()
    old = torch.cat(plain_logprobs(actor, batch)).detach() - 0.4  # all ratios are above 1.4
    batch = merge([batch, field("old_logprobs", old, [n for _, n in LENGTHS])])

    def gradients(config: PPOConfig) -> Tensor:
        interface = PPOActorInterface(config)
        sums = interface.loss(actor.network, interface.prepare(batch)).loss_sum
        return torch.cat([one.flatten() for one in torch.autograd.grad(sums, list(actor.parameters()))])

    assert (gradients(settings(**changes)) - gradients(settings())).abs().max() > 1e-4


@pytest.mark.parametrize("value_norm", [False, True])
def test_a_step_of_the_critic_is_that_of_the_formulas(value_norm: bool) -> None:
    critic, batch, config = model(8, is_critic=True), batch_of_answers(), settings(value_norm=value_norm)
    returns = trained(plain_advantages(batch, answers(batch, "logprobs"), config.ppo)[1])
    old = trained(answers(batch, "values"))  # before the first step, values are on the scale of the critic
    targets = (returns - returns.mean()) / returns.std(correction=0) if value_norm else returns
    values = torch.cat([plain_values(critic, batch)[i] for i in TRAINED])
    clipped = old + (values - old).clamp(-0.2, 0.2)
    loss = torch.maximum((values - targets) ** 2, (clipped - targets) ** 2).mean() / 2
    expected = torch.autograd.grad(loss, list(critic.parameters()))
    names = [name for name, _ in critic.named_parameters()]
    interface = PPOCriticInterface(config)
    metrics, found = changed(critic, lambda engine: interface.train_step(engine, batch, context()))
    assert metrics["loss"] == pytest.approx(loss.item())
    assert metrics["returns/mean"] == pytest.approx(float(returns.mean()))
    for name, gradient in zip(names, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)


def test_values_are_those_before_the_tokens_and_after_the_answer() -> None:
    critic, batch, interface = model(8, is_critic=True), batch_of_answers(), PPOCriticInterface(settings())
    found = interface.inference(critic, batch, context())
    expected = torch.cat(plain_values(critic, batch)).detach()
    torch.testing.assert_close(found["values"].double(), expected, rtol=1e-6, atol=1e-6)
    ends = [
        critic(ids, torch.tensor([0, len(ids)], dtype=torch.int32))[-1].item()
        for ids in batch["input_ids"].split([sum(one) for one in LENGTHS])
    ]
    assert found["end_values"].tolist() == pytest.approx(ends, rel=1e-6)
    assert found.metadata["seqlens"]["values"] == tuple((n,) for _, n in LENGTHS)


def test_answers_that_were_cut_get_a_penalty_after_clipping() -> None:
    batch, config = batch_of_answers(), settings(truncated_reward="penalty", missing_eos_penalty=3.0)
    plain = judge(batch, settings(truncated_reward="reward"), KL).totals
    assert judge(batch, config, KL).totals.tolist() == [plain[0], plain[1] - 3.0, *plain[2:].tolist()]


# ---------------------------------------------------------------- all answers of a vocabulary of 4 tokens

END, LONGEST = 0, 3
SMALL = TINY.replace(n_layers=1, vocab_size=4, init_std=0.5)
PROMPT = [1, 2]


def all_answers() -> list[list[int]]:
    """All answers: those that end with the end-of-sequence token, and those that are as long as allowed."""
    found = []
    for n in range(1, LONGEST + 1):
        for body in itertools.product(range(1, 4), repeat=n - 1):
            found += [[*body, last] for last in range(4) if last == END or n == LONGEST]
    return found


def enumerated_logprobs(network: Any, tokens: list[list[int]]) -> list[Tensor]:
    """Log-probabilities of the tokens of each answer."""
    return [
        torch.log_softmax(
            network(ids := torch.tensor([*PROMPT, *one]), torch.tensor([0, len(ids)], dtype=torch.int32)), dim=-1
        )[len(PROMPT) - 1 : -1].gather(1, torch.tensor(one)[:, None])[:, 0]
        for one in tokens
    ]


def test_the_mean_gradient_over_all_answers_is_that_of_reward_and_divergence() -> None:
    """Whatever the critic says: what it expects does not change the mean."""
    actor, ref, critic = (
        ReaLModel(SMALL.replace(is_critic=seed == 3), seed=seed, dtype=torch.float64) for seed in (1, 2, 3)
    )
    tokens = all_answers()
    reward = torch.tensor([math.sin(3 * i) for i in range(len(tokens))], dtype=torch.float64)
    logprobs = torch.stack([one.sum() for one in enumerated_logprobs(actor, tokens)])
    ref_each = [one.detach() for one in enumerated_logprobs(ref, tokens)]
    assert logprobs.exp().sum().item() == pytest.approx(1.0)
    objective = (logprobs.exp() * (reward - KL * (logprobs - torch.stack([one.sum() for one in ref_each])))).sum()
    expected = torch.autograd.grad(objective, list(actor.parameters()))

    ppo = {"kl_ctl": KL, "ppo_n_minibatches": 1, "gae_lambda": 1.0, "adv_norm": False}
    settings = config(ppo, reward=RewardArgs(functions=["tests.rewards:accuracy"]))
    sizes, ones = [len(one) for one in tokens], [1] * len(tokens)
    sampled = torch.cat([one.detach() for one in enumerated_logprobs(actor, tokens)])
    ids = [token for one in tokens for token in (*PROMPT, *one)]
    batch = merge(
        [
            field("input_ids", torch.tensor(ids), [len(PROMPT) + n for n in sizes]),
            field("prompt_lens", torch.tensor([len(PROMPT)] * len(tokens)), ones),
            field("truncated", torch.tensor([one[-1] != END for one in tokens]), ones),
            field("logprobs", sampled, sizes),
            field("ref_logprobs", torch.cat(ref_each), sizes),
            field("reward_parts", reward, ones),
            field("reward_given", torch.ones(len(tokens), dtype=torch.bool), ones),
        ]
    )
    values = PPOCriticInterface(settings).inference(critic, batch, context())
    interface = PPOActorInterface(settings)
    prepared = interface.prepare(merge([batch, values]))
    # each answer as often as it is sampled: its advantages count with its probability
    weights = logprobs.detach().exp().repeat_interleave(torch.tensor(sizes))
    weighted = prepared.with_fields(advantages=prepared["advantages"] * weights)
    loss = interface.loss(actor.network, weighted).loss_sum
    found = torch.autograd.grad(loss, list(actor.parameters()))
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(-ours, exact, rtol=1e-5, atol=1e-6)  # values are float32
