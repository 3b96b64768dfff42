"""Objective on single answers, each labelled as good or bad: KTO and the unpaired form of APO-zero.

Shapes: S samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm.algorithms.dpo.config import DPOConfig
from reallm.algorithms.losses import kto_loss, kto_reference_point
from reallm.algorithms.pairs import chosen_and_rejected, only, with_field
from reallm.data.batching import lengths, n_samples, select, split_groups
from reallm.data.namedarray import NamedArray
from reallm.model.transformer import Transformer
from reallm.training.objective import LossOutput, Totals
from reallm.training.sequence_scores import answer_logprobs

KL = "kl"
"""Key of the estimate of the KL divergence, the same number in all samples of a batch."""


class SingleAnswerObjective:
    """Reads two sequences of `input_ids` for each sample, a prompt with its answer and with another one, the
    `prompt_lens` and `ref_logprobs` [2S] of both, and `labels` [S] bool; for `kto` also `policy_logprobs` [2S].

    The other answers serve to estimate the KL divergence of policy and reference over the whole batch, which is a
    constant in the loss. The loss is the mean over samples.
    """

    def __init__(self, config: DPOConfig) -> None:
        self._config = config
        self._estimates_kl = "kto" in config.loss_types

    def prepare(self, batch: NamedArray) -> NamedArray:
        """The batch without the other answers, and with what they serve for."""
        kl = torch.zeros(())
        if self._estimates_kl:
            _, others = chosen_and_rejected(batch["policy_logprobs"] - batch["ref_logprobs"])
            kl = kto_reference_point(others)
        keys = {"input_ids": 1, "prompt_lens": 1, "ref_logprobs": 1}
        answers = select(split_groups(only(batch, keys), keys), range(0, 2 * n_samples(batch), 2))
        answers = with_field(answers, "labels", batch["labels"])
        return with_field(answers, KL, kl.expand(n_samples(batch)).clone())

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each sample."""
        return lengths(batch, "input_ids")

    def loss_weight(self, batch: NamedArray) -> int:
        """Number of samples."""
        return n_samples(batch)

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """Summed loss of the samples.

        Raises:
            DataError: a token is not in the model's vocabulary, or a field is malformed.
        """
        logprobs, labels = answer_logprobs(network, batch).sums, batch["labels"]
        log_ratios = logprobs - batch["ref_logprobs"]
        stats: dict[str, Tensor] = {KL: batch[KL].sum()}
        for name, of_label in {"chosen": labels, "rejected": ~labels}.items():
            stats[f"count/{name}"] = of_label.sum()
            stats[f"rewards/{name}"] = self._config.beta * log_ratios.detach()[of_label].sum()
            stats[f"logps/{name}"] = logprobs.detach()[of_label].sum()
        return LossOutput(self._losses(log_ratios, labels, batch[KL]).sum(), stats)

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Means over samples, and over those of each label, under TRL's names."""
        if not totals.loss_weight:
            return {}
        metrics = {"loss": totals.loss}
        if self._estimates_kl:
            metrics[KL] = totals.stats[KL] / totals.loss_weight
        for name in ("chosen", "rejected"):
            if count := totals.stats[f"count/{name}"]:
                metrics |= {key: totals.stats[key] / count for key in (f"rewards/{name}", f"logps/{name}")}
        if "rewards/chosen" in metrics and "rewards/rejected" in metrics:
            metrics["rewards/margins"] = metrics["rewards/chosen"] - metrics["rewards/rejected"]
        return metrics

    def loss_at_reference(self, batch: NamedArray) -> float:
        """The loss where the policy is the reference."""
        labels = batch["labels"]
        zeros = torch.zeros(len(labels), dtype=torch.float64)
        return self._losses(zeros, labels, zeros).mean().item()

    def _losses(self, log_ratios: Tensor, labels: Tensor, kl: Tensor) -> Tensor:
        config = self._config
        return kto_loss(log_ratios, labels, kl, config.beta, config.desirable_weight, config.undesirable_weight)
