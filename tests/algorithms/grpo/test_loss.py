"""Which tokens of the answers of a step have a policy loss."""

from __future__ import annotations

import torch

from reallm.algorithms.grpo.loss import highest_entropy
from reallm.training.sequence_scores import answer_lengths
from tests.algorithms.grpo.steps import Steps


def test_those_with_the_highest_entropies_among_the_trained_ones() -> None:
    entropies = torch.tensor([0.1, 9.0, 0.4, 0.3, 0.2, 0.5])
    mask = torch.tensor([True, False, True, True, True, True])
    assert highest_entropy(entropies, mask, 0.4).tolist() == [False, False, True, False, False, True]
    assert highest_entropy(entropies, mask, 0.0).tolist() == [False] * 5 + [True]
    assert highest_entropy(entropies, mask, 1.0).tolist() == mask.tolist()
    assert not highest_entropy(entropies, torch.zeros_like(mask), 0.5).any()


def test_entropies_are_those_before_the_step_over_all_its_answers() -> None:
    settings = {"top_entropy_quantile": 0.2, "num_minibatches": 2, "off_policy_mask_threshold": 0.5}
    steps = Steps.of(**settings)
    interface = steps.interfaces["actor"]
    trained = []
    interface.trained = lambda judged: trained.append(type(interface).trained(interface, judged)) or trained[-1]
    (metrics,) = steps.train(1, 1, 1)
    assert metrics["train/frac_off_policy_masked"] == 0
    batch = trained[0]
    n = int(answer_lengths(batch).sum())
    assert len(batch["policy_mask"]) == n
    assert int(batch["policy_mask"].sum()) == -(-n // 5)
