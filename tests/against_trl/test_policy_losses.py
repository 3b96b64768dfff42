"""Each loss type of TRL's GRPOTrainer has the same value and gradient on the same answers."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from reallm.algorithms.grpo.loss import highest_entropy
from reallm.algorithms.rl.aggregation import token_weights
from reallm.algorithms.rl.policy_loss_settings import PolicyLossSettings
from reallm.algorithms.rl.policy_objective import PolicyObjective
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from tests.helpers.tiny_config import TINY

trl = pytest.importorskip("trl", reason="runs where TRL is installed: tox run -e trl")

LENGTHS, LONGEST, BETA, ENTROPY = [3, 5, 1, 4], 8, 0.1, 0.05
MEANS = {
    "grpo": "answers", "sapo": "answers", "bnpo": "tokens", "dapo": "tokens", "cispo": "tokens", "vespo": "tokens",
    "dr_grpo": "longest_answers", "luspo": "answer_sums",
}  # fmt: skip
CASES = [(name, {}) for name in MEANS] + [
    ("grpo", {"level": "sequence", "kl_estimate": "k3"}),
    ("luspo", {"level": "sequence", "kl_estimate": "k3"}),
    ("dapo", {"delta": 1.4}),
    ("dapo", {"kl_estimate": "k3"}),
    ("dapo", {"entropy_coef": ENTROPY}),
    ("dapo", {"off_policy_threshold": 0.02}),
    ("grpo", {"top_entropy_quantile": 0.4, "entropy_coef": ENTROPY}),
]


def rows() -> dict[str, Tensor]:
    """Numbers [N] of the tokens of answers."""
    generator = torch.Generator().manual_seed(4)
    n = sum(LENGTHS)
    names = {"old": 0.4, "ref": 0.3}
    noise = {name: scale * torch.randn(n, dtype=torch.float64, generator=generator) for name, scale in names.items()}
    tokens = torch.randint(0, TINY.vocab_size, (n + 2 * len(LENGTHS),), generator=generator)
    return {**noise, "tokens": tokens}


def padded(values: Tensor) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(values.split(LENGTHS)), batch_first=True)


def trl_loss(
    current: Tensor, entropies: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, **settings: Any
) -> Tensor:
    """TRL's loss of one optimizer step, from numbers [N] of the tokens of answers."""
    from trl.trainer.grpo_trainer import GRPOTrainer

    mask = padded(torch.ones(sum(LENGTHS), dtype=torch.int64))
    loss_type = settings.pop("loss_type")
    args = SimpleNamespace(
        use_bias_correction_kl=settings.get("kl_estimate") is None, delta=settings.get("delta"),
        sapo_temperature_pos=1.0, sapo_temperature_neg=1.05, steps_per_generation=1,
        vespo_k_pos=2.0, vespo_k_neg=3.0, vespo_lambda_pos=3.0, vespo_lambda_neg=2.0,
    )  # fmt: skip
    accelerator = SimpleNamespace(
        num_processes=1,
        gather=lambda x: x,
        pad_across_processes=lambda x, **_: x,
        reduce=lambda x, **_: x,
        sync_gradients=False,
        device=torch.device("cpu"),
    )
    trainer = SimpleNamespace(
        args=args, accelerator=accelerator, model=SimpleNamespace(training=True), loss_type=loss_type, beta=BETA,
        aux_loss_enabled=False, top_entropy_quantile=settings.get("top_entropy_quantile", 1.0), use_vllm=False,
        off_policy_mask_threshold=settings.get("off_policy_threshold"),
        get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
        get_high_entropy_mask=lambda *args: GRPOTrainer.get_high_entropy_mask(trainer, *args),
        vllm_importance_sampling_correction=False, importance_sampling_level=settings.get("level", "token"),
        epsilon_low=0.2, epsilon_high=2.0 if loss_type == "cispo" else 0.3, current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST, _entropy_bonus_enabled="entropy_coef" in settings, entropy_coef=ENTROPY,
        use_adaptive_entropy=False, _metrics=defaultdict(lambda: defaultdict(list)),
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
        _get_per_token_logps_and_entropies=lambda *_, **__: (padded(current), padded(entropies), None),
    )  # fmt: skip
    inputs = {
        "prompt_ids": torch.zeros(len(LENGTHS), 2, dtype=torch.int64), "completion_ids": mask,
        "prompt_mask": torch.ones(len(LENGTHS), 2, dtype=torch.int64), "completion_mask": mask,
        "advantages": advantages, "old_per_token_logps": padded(old), "ref_per_token_logps": padded(ref),
        "num_items_in_batch": mask.sum(),
    }  # fmt: skip
    return GRPOTrainer._compute_loss(trainer, None, inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("loss_type", "settings"), CASES, ids=str)
def test_the_loss_and_its_gradient(loss_type: str, settings: dict[str, Any]):
    model = ReaLModel(TINY.replace(init_std=0.4), seed=3, dtype=torch.float64)
    made, lengths = rows(), torch.tensor(LENGTHS)
    advantages = torch.tensor([1.0, -0.5, 0.25, -2.0], dtype=torch.float64)
    bounds = torch.cat((torch.zeros(1, dtype=torch.int64), (lengths + 2).cumsum(0)))
    logits = model(made["tokens"], bounds.int()).log_softmax(-1)
    where = torch.cat([torch.arange(int(a) + 1, int(b) - 1) for a, b in itertools.pairwise(bounds)])
    current = logits[where, made["tokens"][where + 1]]
    entropies = -(logits.exp() * logits).sum(-1)[where]
    old, ref = current.detach() + made["old"], current.detach() + made["ref"]

    expected = trl_loss(current, entropies, old, ref, advantages, loss_type=loss_type, **settings)
    parameters = list(model.network.parameters())
    wanted = torch.autograd.grad(expected, parameters)

    kind = loss_type if loss_type in ("cispo", "sapo", "vespo") else "clip"
    ours = PolicyLossSettings(kind=kind, eps_high=2.0 if kind == "cispo" else 0.3, beta=BETA)
    share = settings.get("top_entropy_quantile", 1.0)
    objective = PolicyObjective(replace(ours, **{k: v for k, v in settings.items() if k != "top_entropy_quantile"}))
    mask = torch.ones(len(old), dtype=torch.bool)
    weights, norms = token_weights(MEANS[loss_type], lengths, torch.arange(len(LENGTHS)), mask, LONGEST)
    of_tokens, of_answers = [(n,) for n in LENGTHS], [(1,)] * len(LENGTHS)
    batch = NamedArray(
        input_ids=made["tokens"], prompt_lens=torch.full_like(lengths, 2), logprobs=old, old_logprobs=old,
        ref_logprobs=ref, advantages=advantages.repeat_interleave(lengths), weights=weights, norms=norms,
        policy_mask=highest_entropy(entropies.detach(), mask, share),
    ).with_metadata(
        seqlens={
            "input_ids": [(n + 2,) for n in LENGTHS], "prompt_lens": of_answers, "norms": of_answers,
            **dict.fromkeys(("logprobs", "old_logprobs", "ref_logprobs", "advantages", "weights"), of_tokens),
            "policy_mask": of_tokens,
        }
    )  # fmt: skip
    output = objective.loss(model.network, batch)
    divisors = objective.loss_weight(batch)
    loss = torch.stack([each / divisors[term] for term, each in output.loss_sums.items()]).sum()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-4, rel=1e-4)
    for mine, theirs in zip(torch.autograd.grad(loss, parameters), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
