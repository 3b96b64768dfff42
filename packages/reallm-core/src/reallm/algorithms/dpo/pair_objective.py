"""Objective on pairs of a chosen and a rejected answer: the losses of DPO and its kin.

Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reallm.algorithms import losses
from reallm.algorithms.dpo.config import DPOConfig
from reallm.algorithms.dpo.graph import needs_policy_logprobs
from reallm.algorithms.dpo.loss_types import LOSS_TYPES
from reallm.algorithms.dpo.matching import matched_loss, with_matches
from reallm.algorithms.pairs import WEIGHTS, chosen_and_rejected, split_pairs
from reallm.data.batching import lengths
from reallm.data.namedarray import NamedArray
from reallm.errors import DataError
from reallm.model.transformer import Transformer
from reallm.training.objective import LossOutput, Totals
from reallm.training.sequence_scores import AnswerLogprobs, answer_lengths, answer_logprobs

PREFERENCE, NLL = "preference", "nll"
"""Terms of the loss."""


class PairObjective:
    """Reads `input_ids` [T] and `prompt_lens` [2P] int64, chosen and rejected answers in turn, and for most losses
    `ref_logprobs` [2P] float32.

    The loss is the mean over prompts of the losses of pairs, each of the k pairs of a prompt counting 1/k, plus the
    negative log-likelihood of chosen answers, a mean over all their tokens, if it has a weight.
    """

    def __init__(self, config: DPOConfig) -> None:
        self._config = config
        self._kinds = {LOSS_TYPES[name].matched for name in config.loss_types} - {None}

    def prepare(self, batch: NamedArray) -> NamedArray:
        """The batch with each pair as a sample of its own."""
        keys = {"input_ids": 2, "prompt_lens": 2}
        keys |= {"ref_logprobs": 2} if self._config.needs_reference else {}
        keys |= {"policy_logprobs": 2} if needs_policy_logprobs(self._config) else {}
        pairs = split_pairs(batch, keys)
        if not self._kinds:
            return pairs
        if not pairs[WEIGHTS].eq(1).all():
            raise DataError(
                f"loss_type={','.join(self._config.loss_types)} compares all pairs of a batch, and needs one pair for "
                "each prompt; set dataset.max_pairs_per_prompt=1"
            )
        return with_matches(pairs, self._kinds)

    def n_tokens(self, batch: NamedArray) -> list[int]:
        """Tokens of each sample."""
        return lengths(batch, "input_ids")

    def loss_weight(self, batch: NamedArray) -> Mapping[str, float]:
        """Number of prompts, and of tokens of chosen answers."""
        weights = {PREFERENCE: float(batch[WEIGHTS].sum())}
        if self._config.sft_weight:
            weights[NLL] = float(answer_lengths(batch)[::2].sum())
        return weights

    def loss(self, network: Transformer, batch: NamedArray) -> LossOutput:
        """Summed loss of each term.

        Raises:
            DataError: a token is not in the model's vocabulary, or a field is malformed.
        """
        answers, weights = answer_logprobs(network, batch), batch[WEIGHTS]

        def total(values: Tensor) -> Tensor:
            return (weights * values).sum()

        per_pair = sum(weight * self._losses(name, answers, batch) for name, weight in self._config.loss_types.items())
        sums = {PREFERENCE: total(torch.as_tensor(per_pair))}
        chosen, rejected = chosen_and_rejected(answers.sums)
        if self._config.sft_weight:
            sums[NLL] = -self._config.sft_weight * chosen.sum()
        stats = {"logps/chosen": chosen, "logps/rejected": rejected, **self._rewards(answers, batch)}
        return LossOutput(sums, {name: total(value.detach()) for name, value in stats.items()})

    def metrics(self, totals: Totals) -> dict[str, float]:
        """Means over prompts, under TRL's names; `nll_loss` is a mean over tokens, without its weight."""
        if not (weight := totals.loss_weights.get(PREFERENCE)):
            return {}
        metrics = {"loss": totals.loss, **{name: value / weight for name, value in totals.stats.items()}}
        if NLL in totals.means:
            metrics["nll_loss"] = totals.means[NLL] / self._config.sft_weight
        return metrics

    def loss_at_reference(self, batch: NamedArray) -> float:
        """The loss without its second term where the policy is the reference."""
        zero = torch.zeros(1, dtype=torch.float64)
        values = [weight * self._function(name)(zero, zero) for name, weight in self._config.loss_types.items()]
        return float(sum(values))

    def _losses(self, name: str, answers: AnswerLogprobs, batch: NamedArray) -> Tensor:
        """Losses [P] of one type."""
        loss_type, config = LOSS_TYPES[name], self._config
        if loss_type.matched:
            return matched_loss(loss_type.matched, self._function(name), answers.sums, batch)
        values = answers.sums - batch["ref_logprobs"] if loss_type.needs_reference else answers.sums
        if loss_type.takes_f_divergence:
            values = losses.f_divergence_scores(values, config.f_divergence_type, config.f_alpha_divergence_coef)
        if loss_type.per_token:
            values = values / answers.lengths.clamp(min=1)
        return self._function(name)(*chosen_and_rejected(values))

    def _function(self, name: str) -> Any:
        settings = {argument: getattr(self._config, key) for argument, key in LOSS_TYPES[name].settings.items()}
        return partial(getattr(losses, LOSS_TYPES[name].function), **settings)

    def _rewards(self, answers: AnswerLogprobs, batch: NamedArray) -> dict[str, Tensor]:
        """Implicit rewards [P]: beta times the log-ratios or, without a reference, the mean log-probabilities."""
        values = answers.sums - batch["ref_logprobs"] if self._config.needs_reference else answers.means
        chosen, rejected = chosen_and_rejected(self._config.beta * values)
        return {
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/accuracies": chosen > rejected,
            "rewards/margins": chosen - rejected,
        }
