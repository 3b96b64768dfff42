"""The loss of a policy on answers that it has sampled itself.

Shapes: S answers, N tokens of answers.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reallm.algorithms.rl.corrections import importance_weights, off_policy_mask
from reallm.algorithms.rl.kl import kl_estimate
from reallm.algorithms.rl.policy_loss import TokenLosses, answer_log_ratios, log_ratios, policy_losses
from reallm.algorithms.rl.policy_loss_settings import PolicyLossSettings
from reallm.algorithms.rl.rollout import sampled_logprobs
from reallm.algorithms.rl.token_watch import TokenWatch
from reallm.data.batching import lengths
from reallm.data.namedarray import NamedArray
from reallm.model.transformer import Transformer
from reallm.training.objective import LossOutput, Totals
from reallm.training.sequence_scores import AnswerLogprobs, answer_logprobs

POLICY, ENTROPY = "policy", "entropy"
"""Terms of the loss."""
_DIFFERENCE = "sampling/sampling_logp_difference"


class PolicyObjective:
    """Reads answers, a sample each: `input_ids` [T] int64, `prompt_lens` [S] int64, and of the tokens of answers the
    `logprobs` [N] with which they were sampled, `advantages` [N], and `weights` [N] and `norms` [S] of `token_weights`;
    tokens of weight 0 are not trained on. `old_logprobs` [N] are those at the beginning of the step; without them, the
    ratio is taken to the policy itself and is 1. With `beta`, `ref_logprobs` [N] are those of the reference. Tokens
    outside of `policy_mask` [N] bool, without which all count, have neither a policy loss nor an entropy bonus.

    The loss is the sum over tokens of weight times loss over the sum of norms, less the mean entropy of the tokens if
    it has a coefficient. Forward passes have no dropout.
    """

    metric_names = (
        "loss",
        "entropy",
        "kl",
        "clip_ratio/low_mean",
        "clip_ratio/high_mean",
        "clip_ratio/region_mean",
        f"{_DIFFERENCE}/mean",
        f"{_DIFFERENCE}/max",
        "sampling/importance_sampling_ratio/mean",
        "frac_off_policy_masked",
    )
    dropout = False

    def __init__(self, settings: PolicyLossSettings) -> None:
        self._settings = settings
        self.watch = TokenWatch()
        """The log-probability of a token less that in sampling, of the answers that are watched."""

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each answer with its prompt."""
        return lengths(batch, "input_ids")

    def loss_weight(self, batch: NamedArray) -> Mapping[str, float]:
        """The sum of norms, and the number of trained tokens for the entropy."""
        weights = {POLICY: float(batch["norms"].sum())}
        if self._settings.entropy_coef:
            weights[ENTROPY] = float(_counted(batch).sum())
        return weights

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """Summed loss of each term.

        Raises:
            DataError: a token is not in the model's vocabulary, or a field is malformed.
        """
        settings = self._settings
        answers = answer_logprobs(network, batch, settings.temperature, with_entropies=True)
        current, entropies, mask = answers.of_tokens, answers.entropies, batch["weights"] != 0
        assert entropies is not None
        # tokens that are not trained on have the ratio 1: one that overflows would be NaN even with the weight 0
        old = (
            torch.where(mask, batch["old_logprobs"], current.detach()) if "old_logprobs" in batch else current.detach()
        )
        log_ratio = log_ratios(current, old, answers.lengths, mask, settings.level)
        found, corrections = self._token_losses(answers, log_ratio, old, mask, batch)
        counted = _counted(batch)
        losses = torch.where(counted, found.losses, 0.0) if "policy_mask" in batch else found.losses
        stats = {"tokens": mask.sum(), "entropy": _sum(entropies, mask), "correction": _sum(corrections, mask)}
        if settings.off_policy_threshold is not None:
            near = off_policy_mask(
                current, batch["logprobs"], batch["advantages"], answers.lengths, mask, settings.off_policy_threshold
            )
            losses, stats["off_policy"] = torch.where(near, losses, 0.0), (mask & ~near).sum()
        if "ref_logprobs" in batch:
            ref = torch.where(mask, batch["ref_logprobs"], current.detach())
            estimate = kl_estimate(settings.kl_estimate, current, ref, old)
            losses, stats["kl"] = losses + settings.beta * estimate, _sum(estimate, mask)
        sums = {POLICY: (batch["weights"] * losses).sum()}
        if settings.entropy_coef:
            sums[ENTROPY] = -settings.entropy_coef * torch.where(counted, entropies, 0.0).sum()
        change = current.detach() - batch["logprobs"]
        self.watch.note(batch, change)
        difference = torch.where(mask, change.abs(), 0.0)
        stats |= {"low": _sum(found.low, mask), "high": _sum(found.high, mask), "difference": difference.sum()}
        return LossOutput(sums, stats, {"difference": difference.max()} if len(difference) else {})

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Means over trained tokens, under TRL's names."""
        if not (n := totals.stats.get("tokens", 0.0)):
            return {}
        low, high = totals.stats["low"] / n, totals.stats["high"] / n
        metrics = {"loss": totals.loss, "entropy": totals.stats["entropy"] / n}
        if "kl" in totals.stats:
            metrics["kl"] = totals.stats["kl"] / n
        metrics |= {
            "clip_ratio/low_mean": low,
            "clip_ratio/high_mean": high,
            "clip_ratio/region_mean": low + high,
            f"{_DIFFERENCE}/mean": totals.stats["difference"] / n,
            f"{_DIFFERENCE}/max": totals.maxima["difference"],
        }
        if "off_policy" in totals.stats:
            metrics["frac_off_policy_masked"] = totals.stats["off_policy"] / n
        if self._settings.correction != "none":
            metrics["sampling/importance_sampling_ratio/mean"] = totals.stats["correction"] / n
        return metrics

    def _token_losses(
        self, answers: AnswerLogprobs, log_ratio: Tensor, old: Tensor, mask: Tensor, batch: NamedArray
    ) -> tuple[TokenLosses, Tensor]:
        """Losses of tokens, corrected for what was sampled from, and the corrections [N]."""
        settings, current = self._settings, answers.of_tokens
        corrections = importance_weights(
            old.detach(),
            sampled_logprobs(batch),
            answers.lengths,
            mask,
            correction=settings.correction,
            level=settings.correction_level,
            lowest=settings.correction_lowest,
            highest=settings.correction_highest,
        )
        if settings.kind == "vespo":  # its ratio of answers has the corrections in it
            of_answers = answer_log_ratios(current - old, corrections.log(), answers.lengths, mask)
            found = policy_losses(log_ratio, batch["advantages"], current, settings, answer_log_weights=of_answers)
            return found, corrections
        found = policy_losses(log_ratio, batch["advantages"], current, settings)
        return found._replace(losses=found.losses * corrections), corrections


def _counted(batch: NamedArray) -> Tensor:
    """Mask [N] of the tokens with a policy loss and an entropy bonus."""
    mask: Tensor = batch["weights"] != 0
    return mask & batch["policy_mask"] if "policy_mask" in batch else mask


def _sum(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values.detach().double(), 0.0).sum()
