"""Losses and gradients of preference optimisation: those of the formulas, however a batch is cut."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from reallm.algorithms import losses
from reallm.algorithms.dpo.config import DPOConfig
from reallm.algorithms.dpo.interface import DPOInterface, ReferenceInterface
from reallm.algorithms.dpo.loss_types import LOSS_TYPES
from reallm.config.args import ReferenceArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.data.batching import select
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.errors import DataError
from reallm.notices import notify_once
from reallm.training.engine import TrainEngine
from tests.helpers.preferences import ACTOR, PAIRS, Data, context, labelled_answers, pairs, scored
from tests.helpers.tiny_config import TINY

BETA = 0.3
ALL_TYPES = list(LOSS_TYPES)
ONE_PAIR_EACH = [sequences[:2] for sequences in PAIRS]
SGD = OptimizerConfig(name="sgd", lr=1.0, schedule="constant", warmup_steps=0, max_grad_norm=0)


def config(loss_type: str | list[str] = "sigmoid", **settings: Any) -> DPOConfig:
    names = [loss_type] if isinstance(loss_type, str) else loss_type
    unpaired = any(name in LOSS_TYPES and LOSS_TYPES[name].unpaired for name in names)
    defaults = {
        "actor": ACTOR,
        "dataset": Data(name="unpaired_preference" if unpaired else "rw_pair"),
        "beta": BETA,
        "label_smoothing": 1e-3 if "exo_pair" in names else 0.0,
    }
    return DPOConfig(loss_type=loss_type, **{**defaults, **settings})


def policy(dtype: torch.dtype = torch.float32) -> ReaLModel:
    return ReaLModel(TINY.replace(init_std=0.3), seed=3, dtype=dtype)


def reference(dtype: torch.dtype = torch.float32) -> ReaLModel:
    return ReaLModel(TINY.replace(init_std=0.3), seed=10, dtype=dtype)


def batch_for(settings: DPOConfig, model: ReaLModel, ref: ReaLModel) -> NamedArray:
    if settings.is_unpaired:
        return scored(settings, labelled_answers(), model, ref)
    matched = any(LOSS_TYPES[name].matched for name in settings.loss_types)
    return scored(settings, pairs(ONE_PAIR_EACH if matched else PAIRS), model, ref)


def step(
    settings: DPOConfig, batch: NamedArray, model: ReaLModel, max_tokens: int = 10_000
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The metrics of a step and its gradients: what plain gradient descent with a rate of 1 changes."""
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    engine = TrainEngine(model, SGD, total_steps=10, max_tokens_per_microbatch=max_tokens)
    metrics = DPOInterface(settings).train_step(engine, batch, context(step=2))
    return metrics, {name: before[name] - value.detach() for name, value in model.named_parameters()}


def plain_logprobs(model: ReaLModel, batch: NamedArray) -> tuple[Tensor, Tensor]:
    """Sums [S] of the log-probabilities of answers from plain logits, one sequence at a time, and their lengths."""
    sums, lengths, start = [], [], 0
    prompt_lens = batch["prompt_lens"].tolist()
    sequences = [n for sample in batch.metadata["seqlens"]["input_ids"] for n in sample]
    for length, prompt in zip(sequences, prompt_lens, strict=True):
        tokens = batch["input_ids"][start : start + length]
        logprobs = torch.log_softmax(model(tokens, torch.tensor([0, length])).double(), dim=-1)
        of_tokens = logprobs[:-1].gather(1, tokens[1:, None])[:, 0]
        sums.append(of_tokens[max(prompt, 1) - 1 :].sum())
        lengths.append(length - max(prompt, 1))
        start += length
    return torch.stack(sums), torch.tensor(lengths)


def expected_loss(settings: DPOConfig, name: str, batch: NamedArray, model: ReaLModel, ref: ReaLModel) -> float:
    """The loss of one type as its formula says, for one pair of each prompt."""
    with torch.no_grad():
        (logps, lengths), (ref_logps, _) = plain_logprobs(model, batch), plain_logprobs(ref, batch)
    ratios = logps - ref_logps
    c, r = ratios[0::2], ratios[1::2]
    means = ratios / lengths
    policy_means = logps / lengths
    chosen, rejected = policy_means[0::2], policy_means[1::2]
    if name in ("kto", "apo_zero_unpaired"):
        kl = ratios[1::2].mean().clamp(min=0) if name == "kto" else 0.0
        return losses.kto_loss(c, batch["labels"], kl, BETA).mean().item()
    if name == "orpo":
        nll = -logps[0::2].sum() / lengths[0::2].sum()
        return (nll + losses.odds_ratio_loss(chosen, rejected, BETA).mean()).item()
    margins, ref_margins = logps[0::2] - logps[1::2], ref_logps[0::2] - ref_logps[1::2]
    formulas: dict[str, Callable[[], Tensor]] = {
        "sigmoid": lambda: losses.sigmoid_loss(c, r, BETA),
        "sigmoid_norm": lambda: losses.sigmoid_loss(means[0::2], means[1::2], BETA),
        "hinge": lambda: losses.hinge_loss(c, r, BETA),
        "ipo": lambda: losses.ipo_loss(means[0::2], means[1::2], BETA),
        "robust": lambda: losses.robust_loss(c, r, BETA, 0.0),
        "exo_pair": lambda: losses.exo_pair_loss(c, r, BETA, 1e-3),
        "nca_pair": lambda: losses.nca_pair_loss(c, r, BETA),
        "bco_pair": lambda: losses.bco_pair_loss(c, r, BETA),
        "sppo_hard": lambda: losses.sppo_hard_loss(c, r, BETA),
        "aot": lambda: losses.sigmoid_loss(margins.sort().values, ref_margins.sort().values, BETA),
        "aot_unpaired": lambda: losses.sigmoid_loss(c.sort().values, r.sort().values, BETA),
        "apo_zero": lambda: losses.apo_zero_loss(c, r, BETA),
        "apo_down": lambda: losses.apo_down_loss(c, r, BETA),
        "discopop": lambda: losses.discopop_loss(c, r, BETA, 0.05),
        "simpo": lambda: losses.simpo_loss(chosen, rejected, BETA, 0.5),
    }
    return formulas[name]().mean().item()


@pytest.mark.parametrize("name", ALL_TYPES)
def test_the_loss_of_a_step_is_that_of_the_formula(name: str) -> None:
    settings, model, ref = config(name), policy(), reference()
    batch = batch_for(settings, model, ref)
    if not settings.is_unpaired:
        batch = scored(settings, pairs(ONE_PAIR_EACH), model, ref)
    expected = expected_loss(settings, name, batch, model, ref)
    metrics, _ = step(settings, batch, model)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ALL_TYPES)
def test_gradients_do_not_depend_on_how_a_batch_is_cut(name: str) -> None:
    settings, ref = config(name), reference(torch.float64)
    batch = batch_for(settings, policy(torch.float64), ref)
    whole_metrics, whole = step(settings, batch, policy(torch.float64))
    for max_tokens in (1, 40):
        metrics, cut = step(settings, batch, policy(torch.float64), max_tokens)
        for key, value in whole_metrics.items():
            assert metrics[key] == pytest.approx(value, rel=1e-9, abs=1e-9), key
        for parameter, gradient in whole.items():
            torch.testing.assert_close(cut[parameter], gradient, rtol=1e-9, atol=1e-9 * gradient.abs().max().item())


def test_every_loss_type_has_a_gradient_of_its_own() -> None:
    seen: dict[str, Tensor] = {}
    for name in ALL_TYPES:
        settings = config(name, **({"label_smoothing": 0.1} if name == "robust" else {}))
        batch = scored(
            settings, labelled_answers() if settings.is_unpaired else pairs(ONE_PAIR_EACH), policy(), reference()
        )
        _, gradients = step(settings, batch, policy())
        flat = torch.cat([value.flatten() for value in gradients.values()])
        assert flat.norm() > 0, name
        for other, seen_gradient in seen.items():
            assert (flat - seen_gradient).norm() > 1e-3 * flat.norm(), (name, other)
        seen[name] = flat


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("sigmoid", {"beta": 0.5}),
        ("sigmoid", {"label_smoothing": 0.2}),
        ("sigmoid", {"rpo_alpha": 0.5}),
        ("sigmoid", {"f_divergence_type": "js_divergence"}),
        ("simpo", {"simpo_gamma": 1.0}),
        ("discopop", {"discopop_tau": 0.5}),
        ("kto", {"desirable_weight": 2.0}),
        ("kto", {"undesirable_weight": 2.0}),
        (["sigmoid", "bco_pair"], {"loss_weights": [1.0, 2.0]}),
    ],
)
def test_every_setting_changes_the_gradient(name: Any, changes: dict[str, Any]) -> None:
    batch = batch_for(config(name), policy(), reference())
    one, other = (step(config(name, **more), batch, policy())[1] for more in ({}, changes))
    assert any((one[parameter] - other[parameter]).norm() > 1e-3 * one[parameter].norm() for parameter in one)


def test_losses_of_several_types_are_added_with_their_weights() -> None:
    mixed = config(["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.5])
    batch = batch_for(mixed, policy(), reference())
    metrics, _ = step(mixed, batch, policy())
    sigmoid, bco = (step(config(name), batch, policy())[0]["loss"] for name in ("sigmoid", "bco_pair"))
    logps, lengths = plain_logprobs(policy(), batch)
    nll = (-logps[0::2].sum() / lengths[0::2].sum()).item()
    assert metrics["nll_loss"] == pytest.approx(nll, rel=1e-5)
    assert metrics["loss"] == pytest.approx(0.8 * sigmoid + 0.2 * bco + 1.5 * nll, rel=1e-5)


def test_the_pairs_of_a_prompt_have_the_weight_of_one() -> None:
    settings = config()
    batch = batch_for(settings, policy(), reference())
    metrics, _ = step(settings, batch, policy())
    by_prompt = []
    for row in range(len(PAIRS)):
        one = select(batch, [row])
        with torch.no_grad():
            (logps, _), (ref_logps, _) = plain_logprobs(policy(), one), plain_logprobs(reference(), one)
        ratios = logps - ref_logps
        by_prompt.append(losses.sigmoid_loss(ratios[0::2], ratios[1::2], BETA).mean().item())
    assert metrics["loss"] == pytest.approx(sum(by_prompt) / len(by_prompt), rel=1e-5)


def test_metrics_have_the_names_and_values_of_trl() -> None:
    settings = config()
    batch = scored(settings, pairs(ONE_PAIR_EACH), policy(), reference())
    metrics, _ = step(settings, batch, policy())
    with torch.no_grad():
        (logps, _), (ref_logps, _) = plain_logprobs(policy(), batch), plain_logprobs(reference(), batch)
    rewards = BETA * (logps - ref_logps)
    assert metrics["rewards/chosen"] == pytest.approx(rewards[0::2].mean().item(), rel=1e-4)
    assert metrics["rewards/rejected"] == pytest.approx(rewards[1::2].mean().item(), rel=1e-4)
    assert metrics["rewards/margins"] == pytest.approx((rewards[0::2] - rewards[1::2]).mean().item(), rel=1e-4)
    assert metrics["rewards/accuracies"] == (rewards[0::2] > rewards[1::2]).double().mean().item()
    assert metrics["logps/chosen"] == pytest.approx(logps[0::2].mean().item(), rel=1e-5)
    assert metrics["logps/rejected"] == pytest.approx(logps[1::2].mean().item(), rel=1e-5)


KNOWN = {
    "sigmoid": math.log(2),
    "sigmoid_norm": math.log(2),
    "hinge": 1.0,
    "ipo": (1 / (2 * BETA)) ** 2,
    "robust": math.log(2),
    "exo_pair": -math.log(2) - (math.log(1 - 1e-3) + math.log(1e-3)) / 2,
    "nca_pair": 2 * math.log(2),
    "bco_pair": 2 * math.log(2),
    "sppo_hard": 1 / (2 * BETA**2),
    "aot": math.log(2),
    "aot_unpaired": math.log(2),
    "apo_zero": 1.0,
    "apo_down": 1.0,
    "discopop": (1 + math.log(2)) / 2,
    "kto": 0.5,
    "apo_zero_unpaired": 0.5,
}


@pytest.mark.parametrize("name", KNOWN)
def test_a_policy_that_is_its_reference_has_the_known_loss_whatever_dropout_the_model_asks_for(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    noisy = TINY.replace(init_std=0.3, residual_dropout=0.1, attn_dropout=0.1, embedding_dropout=0.1)
    model, settings = ReaLModel(noisy, seed=3), config(name)
    batch = batch_for(settings, model, ReaLModel(noisy, seed=3))
    engine = TrainEngine(model, SGD, total_steps=10, max_tokens_per_microbatch=40)
    with caplog.at_level(logging.WARNING, "reallm"):
        metrics = DPOInterface(settings).train_step(engine, batch, context(step=1))
    assert metrics["loss"] == pytest.approx(KNOWN[name], rel=1e-6)
    assert caplog.text == ""


def first_notice(settings: DPOConfig, caplog: pytest.LogCaptureFixture, step: int = 1) -> str:
    notify_once.cache_clear()
    batch = batch_for(settings, policy(), reference())
    engine = TrainEngine(policy(), SGD, total_steps=10, max_tokens_per_microbatch=10_000)
    with caplog.at_level(logging.WARNING, "reallm"):
        DPOInterface(settings).train_step(engine, batch, context(step=step))
    return caplog.text


def test_another_first_loss_is_said_once_with_the_difference(caplog: pytest.LogCaptureFixture) -> None:
    said = first_notice(config(ref=ReferenceArgs(path="models/other")), caplog)
    assert "the loss of the first step is" in said
    assert "from the 0.6931 of a policy that is its reference: ref.path=models/other is another checkpoint" in said
    assert said.count("\n") == 1


def test_the_same_checkpoint_with_another_loss_points_to_the_settings(caplog: pytest.LogCaptureFixture) -> None:
    said = first_notice(config(rpo_alpha=1.0), caplog)
    assert "they are the same checkpoint, so that a setting of actor.* or ref.* must differ" in said


def test_a_resumed_run_and_a_loss_without_reference_have_no_first_loss(caplog: pytest.LogCaptureFixture) -> None:
    assert first_notice(config(), caplog, step=5) == ""
    assert first_notice(config("simpo"), caplog) == ""


def test_an_evaluation_against_the_policy_itself_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def said(total_steps: int, **settings: Any) -> str:
        notify_once.cache_clear()
        caplog.clear()
        where = context(step=0, total_steps=total_steps, training=False)
        with caplog.at_level(logging.WARNING, "reallm"):
            ReferenceInterface(config(**settings)).inference(reference(), pairs(), where)
        return caplog.text

    assert "policy and reference are the same checkpoint, so that all rewards are 0; set ref.path to" in said(0)
    assert said(0, ref=ReferenceArgs(path="models/other")) == ""
    assert said(10) == ""


def test_log_probabilities_of_the_reference_are_those_of_plain_logits() -> None:
    batch, ref = pairs(), reference()
    found = ReferenceInterface(config()).inference(ref, batch, context(max_tokens_per_microbatch=30))
    with torch.no_grad():
        expected, _ = plain_logprobs(ref, batch)
    torch.testing.assert_close(found["ref_logprobs"], expected.float(), rtol=1e-5, atol=1e-5)
    assert found.metadata["seqlens"]["ref_logprobs"] == ((1, 1), (1, 1), (1, 1, 1, 1), (1, 1), (1, 1))


def test_comparisons_over_a_batch_need_one_pair_for_each_prompt() -> None:
    settings = config("aot")
    batch = scored(settings, pairs(PAIRS), policy(), reference())
    with pytest.raises(DataError, match=r"one pair for each prompt; set dataset\.max_pairs_per_prompt=1"):
        DPOInterface(settings).prepare(batch)


def test_the_estimate_of_the_divergence_of_kto_is_over_the_whole_batch_and_from_other_answers() -> None:
    settings = config("kto")
    batch = scored(settings, labelled_answers(), policy(), reference())
    metrics, _ = step(settings, batch, policy(), max_tokens=1)
    others = (batch["policy_logprobs"] - batch["ref_logprobs"])[1::2]
    assert metrics["kl"] == pytest.approx(max(0.0, others.mean().item()), rel=1e-6)
    assert metrics["tokens"] == sum(n for n, _ in batch.metadata["seqlens"]["input_ids"])


def test_an_example_is_the_prompt_and_the_chosen_answer() -> None:
    sample = select(pairs(), [2])
    example = DPOInterface(config()).example(sample)
    assert example.prompt_ids == sample["input_ids"][:8].tolist()
    assert example.expected_ids == sample["input_ids"][8:20].tolist()


def test_steps_teach_a_policy_to_prefer_what_was_chosen() -> None:
    for name in ("sigmoid", "ipo", "simpo", "orpo", "apo_zero"):
        settings, model, ref = config(name), policy(), policy()
        interface = DPOInterface(settings)
        engine = TrainEngine(model, OptimizerConfig(lr=3e-3, schedule="constant"), 30, max_tokens_per_microbatch=10_000)
        first = None
        for number in range(30):
            batch = scored(settings, pairs(), model, ref)
            metrics = interface.train_step(engine, batch, context(step=number + 2))
            first = first or metrics
        assert metrics["loss"] < first["loss"], name
        assert metrics["rewards/accuracies"] == 1, name


def test_an_answer_that_is_labelled_as_bad_is_not_expected() -> None:
    config = DPOConfig(actor=ACTOR, dataset=Data(name="unpaired_preference"), loss_type="kto")
    interface, batch = DPOInterface(config), labelled_answers()
    good, bad = (interface.example(select(batch, [row])) for row in (0, 1))
    assert good.expected_ids is not None
    assert len(good.expected_ids) == 3
    assert bad.expected_ids is None
    assert len(bad.prompt_ids) == 3
