"""Losses and gradients of distillation: those of the formulas over plain logits, however a batch is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reallm.algorithms.distill.config import DistillConfig
from reallm.algorithms.distill.divergence import divergence
from reallm.algorithms.distill.graph import graph
from reallm.algorithms.distill.interface import DistillInterface
from reallm.algorithms.distill.teacher import ComparisonInterface, TeacherInterface
from reallm.algorithms.rl.keys import ROLLOUT
from reallm.config.args import ModelArgs, SamplingArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import gather
from reallm.data.namedarray import NamedArray, merge, split
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from reallm.training.engine import TrainEngine
from tests.helpers.preferences import ACTOR, Data, context
from tests.helpers.tiny_config import TINY

SGD = OptimizerConfig(name="sgd", lr=1.0, schedule="constant", warmup_steps=0, max_grad_norm=0)
TEMPERATURE = 0.8


class Tokenizer:
    """Knows all tokens of the models."""

    def get_vocab(self) -> dict[str, int]:
        return {str(i): i for i in range(TINY.vocab_size)}


CONTEXT = context(tokenizer=Tokenizer())


def config(*, on_policy: bool = False, **settings: Any) -> DistillConfig:
    defaults = {
        "actor": ACTOR,
        "teacher": ModelArgs(path="models/teacher"),
        "dataset": Data(name="prompt" if on_policy else "prompt_answer"),
        "temperature": TEMPERATURE,
        "keep_rollouts": 0,
    }
    if settings.get("policy_gradient"):
        del defaults["temperature"]
    return DistillConfig(on_policy=on_policy, **{**defaults, **settings})


def model(seed: int = 3) -> ReaLModel:
    return ReaLModel(TINY.replace(init_std=0.3), seed=seed, dtype=torch.float64)


def rows() -> NamedArray:
    """Three rows with two turns each, one of which is in the loss from its first token on."""
    samples = []
    for row, length in enumerate((9, 14, 6)):
        ids = torch.randint(0, 48, (length,), generator=torch.Generator().manual_seed(row))
        mask = torch.arange(length) % 5 != (1 if row == 2 else 0)
        sizes = {"input_ids": [[length]], "loss_mask": [[length]]}
        samples.append(NamedArray(input_ids=ids, loss_mask=mask).with_metadata(seqlens=sizes, ids=[f"row-{row}"]))
    return gather(samples)


def answers() -> NamedArray:
    """Two prompts with two answers each, one of them without a token."""
    lengths, prompts = [(9, 7), (5, 12)], [(4, 4), (5, 5)]
    of_answers = [tuple(n - p for n, p in zip(*each, strict=True)) for each in zip(lengths, prompts, strict=True)]
    generator = torch.Generator().manual_seed(2)
    sizes = {"input_ids": lengths, "prompt_lens": [(1, 1)] * 2, "logprobs": of_answers, "truncated": [(1, 1)] * 2}
    return NamedArray(
        input_ids=torch.randint(0, 48, (33,), generator=generator),
        prompt_lens=torch.tensor([4, 4, 5, 5]),
        logprobs=-torch.rand(15, generator=generator),
        truncated=torch.zeros(4, dtype=torch.bool),
    ).with_metadata(seqlens=sizes, ids=["a", "b"])


def scored(settings: DistillConfig, batch: NamedArray, teacher: ReaLModel) -> NamedArray:
    """The batch with what the calls before the train call write."""
    batch = merge([batch, TeacherInterface(settings).inference(teacher, batch, CONTEXT)])
    if settings.on_policy:
        batch = merge([batch, ComparisonInterface(settings).reward(batch, CONTEXT)])
    return split(batch, [graph(settings)[-1].inputs])[0]


def step(
    settings: DistillConfig, batch: NamedArray, student: ReaLModel, max_tokens: int = 10_000
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The metrics of a step and its gradients: what plain gradient descent with a rate of 1 changes."""
    before = {name: value.detach().clone() for name, value in student.named_parameters()}
    engine = TrainEngine(student, SGD, total_steps=10, max_tokens_per_microbatch=max_tokens)
    metrics = DistillInterface(settings).train_step(engine, batch, CONTEXT)
    return metrics, {name: before[name] - value.detach() for name, value in student.named_parameters()}


def plain_logits(network: ReaLModel, batch: NamedArray) -> Tensor:
    """Logits [N, V] that predict the tokens in the loss, one sequence at a time."""
    found, start = [], 0
    for number, length in enumerate(n for sample in batch.metadata["seqlens"]["input_ids"] for n in sample):
        if "loss_mask" in batch:
            mask = batch["loss_mask"][start : start + length]
        else:
            mask = torch.arange(length) >= batch["prompt_lens"][number]
        logits = network(batch["input_ids"][start : start + length], torch.tensor([0, length]))
        found.append(logits[:-1][mask[1:]])
        start += length
    return torch.cat(found)


def formula(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Mean divergence of logits [N, V] over the temperature, as its definition says."""
    q, p = (torch.softmax(logits / TEMPERATURE, dim=-1) for logits in (student, teacher))
    if beta == 0:
        return (p * (p / q).log()).sum(dim=-1).mean()
    if beta == 1:
        return (q * (q / p).log()).sum(dim=-1).mean()
    m = beta * p + (1 - beta) * q
    return (beta * (p * (p / m).log()) + (1 - beta) * (q * (q / m).log())).sum(dim=-1).mean()


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_with_all_tokens_loss_and_gradients_are_those_of_whole_distributions(on_policy: bool, beta: float) -> None:
    settings = config(on_policy=on_policy, beta=beta, top_k=None)
    batch, student, teacher = answers() if on_policy else rows(), model(), model(10)
    expected = formula(plain_logits(student, batch), plain_logits(teacher, batch).detach(), beta)
    names, parameters = zip(*student.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(expected, parameters), strict=True))
    metrics, found = step(settings, scored(settings, batch, teacher), student)
    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7)


def test_other_tokens_than_the_most_likely_ones_are_one() -> None:
    settings = config(top_k=3)
    student, teacher = model(), model(10)
    batch = scored(settings, rows(), teacher)
    assert batch["top_tokens"].shape == (len(batch["top_rest"]), 3)
    p, q = (torch.softmax(plain_logits(each, batch).detach() / TEMPERATURE, -1) for each in (teacher, student))
    at = batch["top_tokens"].long()
    merged_p, merged_q = (torch.cat((x.gather(1, at), 1 - x.gather(1, at).sum(1, keepdim=True)), 1) for x in (p, q))
    expected = (merged_p * (merged_p / merged_q).log()).sum(1).mean().item()
    metrics, _ = step(settings, batch, student)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-6)
    assert metrics["top_k_mass"] == pytest.approx(merged_p[:, :3].sum(1).mean().item(), rel=1e-6)


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("top_k", [2, None])
def test_a_student_that_is_its_teacher_has_a_loss_of_0(on_policy: bool, top_k: int | None) -> None:
    settings = config(on_policy=on_policy, top_k=top_k)
    student = model()
    metrics, gradients = step(settings, scored(settings, answers() if on_policy else rows(), student), student)
    assert abs(metrics["loss"]) < 1e-6
    assert max(gradient.abs().max().item() for gradient in gradients.values()) < 1e-5


@pytest.mark.parametrize("on_policy", [False, True])
def test_no_cut_changes_the_gradient(on_policy: bool) -> None:
    settings = config(on_policy=on_policy, top_k=4, cross_entropy_weight=0.0 if on_policy else 0.5)
    batch = scored(settings, answers() if on_policy else rows(), model(10))
    whole, gradients = step(settings, batch, model())
    cut, others = step(settings, batch, model(), max_tokens=14)
    assert cut["loss"] == pytest.approx(whole["loss"], rel=1e-12)
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-9, atol=1e-12)


def test_the_cross_entropy_is_added_with_its_weight() -> None:
    teacher = model(10)
    plain, mixed = config(), config(cross_entropy_weight=0.5)
    batch = scored(plain, rows(), teacher)
    alone, _ = step(plain, batch, model())
    both, _ = step(mixed, batch, model())
    assert both["divergence"] == pytest.approx(alone["loss"])
    assert both["loss"] == pytest.approx(alone["loss"] + 0.5 * both["cross_entropy"])


def test_answers_are_compared_on_the_tokens_that_were_sampled() -> None:
    settings = config(on_policy=True, top_k=2)
    teacher, batch = model(10), answers()
    found = scored(settings, batch, teacher)
    logprobs = torch.log_softmax(plain_logits(teacher, batch).detach(), dim=-1)
    lens, prompts = [9, 7, 5, 12], batch["prompt_lens"].tolist()
    tokens = torch.cat([ids[p:] for ids, p in zip(batch["input_ids"].split(lens), prompts, strict=True)])
    torch.testing.assert_close(
        found["log_ratios"].double(), batch["logprobs"] - logprobs.gather(1, tokens[:, None])[:, 0], rtol=0, atol=1e-5
    )
    kl = ComparisonInterface(settings).eval_metrics(found, CONTEXT)["kl"]
    assert kl == pytest.approx([one.mean().item() for one in found["log_ratios"].split([5, 3, 0, 7]) if len(one)])
    assert set(ROLLOUT) <= set(DistillInterface(settings).prepare(found).keys())


def test_by_policy_gradient_each_token_is_rewarded_by_its_log_ratio() -> None:
    settings = config(on_policy=True, policy_gradient=True)
    teacher, student, batch = model(10), model(), answers()
    found = scored(settings, batch, teacher)
    assert "top_tokens" not in found
    lens, prompts = [9, 7, 5, 12], batch["prompt_lens"].tolist()
    tokens = torch.cat([ids[p:] for ids, p in zip(batch["input_ids"].split(lens), prompts, strict=True)])
    theirs, own = (
        torch.log_softmax(plain_logits(each, batch), dim=-1).gather(1, tokens[:, None])[:, 0]
        for each in (teacher, student)
    )
    ratios = batch["logprobs"].double() - theirs.detach()
    names, parameters = zip(*student.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad((ratios * own).mean(), parameters), strict=True))
    metrics, changes = step(settings, found, student)
    assert metrics["kl"] == pytest.approx(ratios.mean().item(), rel=1e-5)
    assert metrics["loss"] == pytest.approx(ratios.mean().item(), rel=1e-5)  # as its own ratio is 1
    for name, gradient in gradients.items():
        torch.testing.assert_close(changes[name], gradient, rtol=1e-4, atol=1e-6)


def test_a_divergence_is_finite_where_there_are_no_other_tokens() -> None:
    teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    student = torch.tensor([[0.25, 0.75, 1e-30]]).log()
    for beta in (0.0, 0.5, 1.0):
        assert divergence(student, teacher, beta).item() > 0
    assert divergence(teacher, teacher, 0.5).item() == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"beta": 1.5}, "beta=1.5 must be from 0 to 1"),
        ({"beta": float("nan")}, "beta=nan must be from 0 to 1"),
        ({"top_k": 0}, "top_k=0 must be at least 1, or null for all tokens"),
        ({"temperature": 0.0}, "temperature=0.0 must be a number more than 0"),
        ({"num_generations": 0}, "num_generations=0 must be at least 1"),
        ({"cross_entropy_weight": -1.0}, "cross_entropy_weight=-1.0 must be at least 0"),
        (
            {"on_policy": True, "dataset": Data(name="prompt_answer")},
            "on_policy=true: the student answers prompts itself; set dataset.name=prompt",
        ),
        ({"dataset": Data(name="prompt")}, "dataset.name=prompt has no answers to learn from; set on_policy=true"),
        (
            {"num_generations": 4},
            "num_generations=4 has no effect on given answers; set on_policy=true to learn from those of the student",
        ),
        (
            {"gen": SamplingArgs(top_p=0.5)},
            "gen.top_p=0.5 has no effect on given answers; set on_policy=true to learn from those of the student",
        ),
        (
            {"on_policy": True, "cross_entropy_weight": 0.5},
            "cross_entropy_weight=0.5 with on_policy=true would train the student on what it says already; "
            "leave it out",
        ),
        ({"policy_gradient": True}, "policy_gradient=true is for the student's own answers; set on_policy=true"),
        (
            {"on_policy": True, "policy_gradient": True, "beta": 0.5},
            "beta=0.5 has no effect with policy_gradient=true, which compares only the sampled tokens, at "
            "gen.temperature; leave it out",
        ),
        ({"async_steps": 1}, "async_steps=1 has no effect without on_policy=true: nothing is sampled"),
        (
            {"on_policy": True, "teacher_scores": "cache"},
            "teacher_scores=cache does not go together with on_policy=true, whose answers are new in each step",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as found:
        config(**settings)
    assert str(found.value) == said
