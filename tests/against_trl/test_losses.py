"""Each loss of TRL's DPOTrainer and KTOTrainer has the same value and gradient on the same log-probabilities."""

from __future__ import annotations

import importlib
from collections import defaultdict
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from reallm.algorithms import losses

trl = pytest.importorskip("trl", reason="runs where TRL is installed: tox run -e trl")

BETA, GAMMA, EPS, TAU = 0.3, 0.4, 0.1, 0.05
PROMPT, CHOSEN, REJECTED = 2, [3, 6, 1, 4, 5], [5, 2, 4, 4, 1]
N = len(CHOSEN)


class Accelerator:
    device = torch.device("cpu")

    def gather(self, values: Tensor) -> Tensor:
        return values

    gather_for_metrics = gather


def outputs(logprobs: Tensor) -> SimpleNamespace:
    """What TRL's patched model returns, of which the loss reads only the log-probabilities of the tokens."""
    zeros = torch.zeros_like(logprobs)
    return SimpleNamespace(log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros > 1)


def trainer(ref_logprobs: Tensor, loss_type: str, **settings: Any) -> SimpleNamespace:
    defaults = {
        "label_smoothing": EPS if loss_type in ("robust", "exo_pair", "aot", "aot_unpaired") else 0.0,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
    }
    return SimpleNamespace(
        model=SimpleNamespace(training=True, config=None),
        ref_model=lambda **_: outputs(ref_logprobs),
        accelerator=Accelerator(),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=TAU),
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=False,
        use_weighting=False,
        beta=BETA,
        loss_types=[loss_type],
        loss_weights=[1.0],
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        **{**defaults, **settings},
    )


def trl_loss(logprobs: Tensor, ref_logprobs: Tensor, loss_type: str, **settings: Any) -> Tensor:
    """TRL's loss of 5 pairs, from log-probabilities [10, T] of the tokens of chosen and then rejected answers."""
    from trl.trainer import dpo_trainer

    mask = answer_masks()
    inputs = {"input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask}
    return dpo_trainer.DPOTrainer._compute_loss(  # type: ignore[no-any-return]
        trainer(ref_logprobs, loss_type, **settings), lambda **_: outputs(logprobs), inputs, False
    )


@pytest.fixture(autouse=True)
def no_gradient_checkpointing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for a model has no modules whose checkpointing could be switched off."""
    for name in ("dpo_trainer", "kto_trainer"):
        module = importlib.import_module(f"trl.trainer.{name}")
        monkeypatch.setattr(module, "disable_gradient_checkpointing", lambda *_: nullcontext())


def answer_masks() -> Tensor:
    lengths = torch.tensor(CHOSEN + REJECTED)[:, None]
    positions = torch.arange(PROMPT + max(CHOSEN + REJECTED))
    return ((positions >= PROMPT) & (positions < PROMPT + lengths)).long()


def token_logprobs(seed: int) -> Tensor:
    """[10, T] float64, 0 outside of the answers."""
    generator = torch.Generator().manual_seed(seed)
    mask = answer_masks()[:, 1:]
    return -torch.rand(mask.shape, generator=generator, dtype=torch.float64) * 3 * mask


Loss = Callable[[Tensor, Tensor], Tensor]
SUMS: dict[str, Loss] = {
    "sigmoid": lambda c, r: losses.sigmoid_loss(c, r, BETA),
    "hinge": lambda c, r: losses.hinge_loss(c, r, BETA),
    "robust": lambda c, r: losses.robust_loss(c, r, BETA, EPS),
    "exo_pair": lambda c, r: losses.exo_pair_loss(c, r, BETA, EPS),
    "nca_pair": lambda c, r: losses.nca_pair_loss(c, r, BETA),
    "bco_pair": lambda c, r: losses.bco_pair_loss(c, r, BETA),
    "sppo_hard": lambda c, r: losses.sppo_hard_loss(c, r, BETA),
    "apo_zero": lambda c, r: losses.apo_zero_loss(c, r, BETA),
    "apo_down": lambda c, r: losses.apo_down_loss(c, r, BETA),
    "discopop": lambda c, r: losses.discopop_loss(c, r, BETA, TAU),
    "aot_unpaired": lambda c, r: losses.sigmoid_loss(c, r[losses.rank_matches(c, r)], BETA, EPS),
}
MEANS: dict[str, Loss] = {
    "ipo": lambda c, r: losses.ipo_loss(c, r, BETA),
    "sigmoid_norm": lambda c, r: losses.sigmoid_loss(c, r, BETA),
}


def check_equal(ours: Tensor, theirs: Tensor, of: Tensor) -> None:
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)  # TRL keeps some constants in float32
    gradients = [torch.autograd.grad(loss, of, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [*SUMS, *MEANS])
def test_a_loss_of_pairs_is_that_of_trl(name: str) -> None:
    logprobs, ref_logprobs = token_logprobs(1).requires_grad_(), token_logprobs(2)
    chosen, rejected = (logprobs - ref_logprobs).sum(1).chunk(2)
    if name in MEANS:
        chosen, rejected = chosen / torch.tensor(CHOSEN), rejected / torch.tensor(REJECTED)
    loss = {**SUMS, **MEANS}[name](chosen, rejected)
    assert loss.shape == (N,)
    check_equal(loss.mean(), trl_loss(logprobs, ref_logprobs, name), logprobs)


def test_aot_compares_the_margins_of_policy_and_reference_by_rank() -> None:
    logprobs, ref_logprobs = token_logprobs(1).requires_grad_(), token_logprobs(2)
    margins, ref_margins = (each.chunk(2)[0] - each.chunk(2)[1] for each in (logprobs.sum(1), ref_logprobs.sum(1)))
    loss = losses.sigmoid_loss(margins, ref_margins[losses.rank_matches(margins, ref_margins)], BETA, EPS)
    check_equal(loss.mean(), trl_loss(logprobs, ref_logprobs, "aot"), logprobs)


@pytest.mark.parametrize("divergence", ["forward_kl", "js_divergence", "alpha_divergence"])
@pytest.mark.parametrize("name", ["sigmoid", "hinge", "robust", "exo_pair", "discopop"])
def test_f_divergences_are_those_of_trl(name: str, divergence: Any) -> None:
    logprobs, ref_logprobs = token_logprobs(1).float().requires_grad_(), token_logprobs(2).float()
    scores = losses.f_divergence_scores((logprobs - ref_logprobs).sum(1), divergence, 0.5)
    theirs = trl_loss(logprobs, ref_logprobs, name, f_divergence_type=divergence)
    assert SUMS[name](*scores.chunk(2)).mean().item() == pytest.approx(theirs.item(), rel=1e-5)


def test_the_negative_log_likelihood_of_chosen_answers_is_a_mean_over_their_tokens() -> None:
    logprobs = token_logprobs(1)
    assert trl_loss(logprobs, token_logprobs(2), "sft").item() == pytest.approx(
        -logprobs[:N].sum().item() / sum(CHOSEN)
    )


def test_simpo_is_that_of_trl() -> None:
    cpo_trainer = pytest.importorskip("trl.experimental.cpo.cpo_trainer")
    means = token_logprobs(1).sum(1) / torch.tensor(CHOSEN + REJECTED)
    means.requires_grad_()
    for smoothing in (0.0, EPS):
        settings = {"beta": BETA, "simpo_gamma": GAMMA, "label_smoothing": smoothing, "alpha": 0.0}
        fake = SimpleNamespace(accelerator=Accelerator(), loss_type="simpo", **settings)
        theirs, *_ = cpo_trainer.CPOTrainer.cpo_loss(fake, *means.chunk(2))
        check_equal(losses.simpo_loss(*means.chunk(2), BETA, GAMMA, smoothing).mean(), theirs.mean(), means)


def test_the_odds_ratio_is_that_of_trl() -> None:
    orpo_trainer = pytest.importorskip("trl.experimental.orpo.orpo_trainer")
    means = token_logprobs(1).sum(1) / torch.tensor(CHOSEN + REJECTED)
    fake = SimpleNamespace(beta=BETA, accelerator=Accelerator())
    theirs, *_ = orpo_trainer.ORPOTrainer.odds_ratio_loss(fake, *means.chunk(2))  # its sign is that of a gain
    ours = BETA * losses.odds_ratio_loss(*means.chunk(2))
    torch.testing.assert_close(ours.float(), -theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_a_loss_of_single_answers_is_that_of_trl(loss_type: str) -> None:
    from trl.trainer import kto_trainer

    logprobs, ref_logprobs = token_logprobs(1).requires_grad_(), token_logprobs(2)
    labels = torch.tensor([True, False] * N)
    kl_ratios = torch.linspace(-1, 4, 2 * N, dtype=torch.float64)
    mask = answer_masks()
    fake = trainer(ref_logprobs, loss_type, desirable_weight=1.5, undesirable_weight=0.8)
    fake.loss_type, fake.calculate_KL = loss_type, loss_type == "kto"
    # the log-probabilities of answers to other prompts: the policy's minus the reference's are kl_ratios
    fake._compute_kl_logps = lambda model, _: kl_ratios if model is policy else torch.zeros_like(kl_ratios)

    def policy(**_: Any) -> SimpleNamespace:
        return outputs(logprobs)

    inputs = {
        "input_ids": torch.zeros_like(mask),
        "attention_mask": torch.ones_like(mask),
        "completion_mask": mask,
        "label": labels,
    }
    theirs = kto_trainer.KTOTrainer._compute_loss(fake, policy, inputs, False)
    kl = losses.kto_reference_point(kl_ratios) if loss_type == "kto" else 0.0
    ours = losses.kto_loss((logprobs - ref_logprobs).sum(1), labels, kl, BETA, 1.5, 0.8)
    check_equal(ours.mean(), theirs, logprobs)
