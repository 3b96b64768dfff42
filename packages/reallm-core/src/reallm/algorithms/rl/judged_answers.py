"""The answers of a step with their rewards, and what the loss of a policy and people read of them.

Shapes: S answers, F rewards of each, N tokens of answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reallm.algorithms.context import CallContext
from reallm.algorithms.rl.aggregation import Mean, token_weights
from reallm.algorithms.rl.config import RewardedConfig
from reallm.algorithms.rl.keys import ANSWERS, KEPT_MASS
from reallm.algorithms.rl.rollout_record import rollout_records
from reallm.algorithms.rl.total_rewards import Rewards, reward_names
from reallm.data.batching import select
from reallm.data.namedarray import NamedArray, split
from reallm.training.sequence_scores import answer_lengths


@dataclass(frozen=True)
class JudgedAnswers:
    """The answers of a step with their rewards."""

    answers: NamedArray
    """Each answer as a sample; `groups` tell which prompt it belongs to."""
    rewards: Rewards
    totals: Tensor
    """[S] float64: the rewards that are trained with."""
    is_trained: Tensor
    """[S] bool: whether an answer is trained on."""

    @property
    def groups(self) -> Tensor:
        """[S] int64: number of each answer's prompt."""
        return torch.tensor(self.answers.metadata["groups"])

    @property
    def lengths(self) -> Tensor:
        """[S] int64: tokens of each answer."""
        return answer_lengths(self.answers)

    @property
    def is_trained_token(self) -> Tensor:
        """[N] bool: whether a token is one of an answer that is trained on."""
        return self.is_trained.repeat_interleave(self.lengths)

    def trained(
        self, keys: Iterable[str], of_tokens: Mapping[str, Tensor], of_answers: Mapping[str, Tensor] | None = None
    ) -> NamedArray:
        """The answers that are trained on, with those of the keys that they have, and further fields [N] and [S]."""
        more, seqlens = {**of_tokens, **(of_answers or {})}, self.answers.metadata["seqlens"]
        sizes = {name: seqlens["logprobs" if name in of_tokens else "prompt_lens"] for name in more}
        whole = self.answers.with_fields(**more).with_metadata(seqlens={**seqlens, **sizes})
        read = split(whole, [dict.fromkeys([*(key for key in keys if key in whole), *more])])[0]
        return select(read, torch.nonzero(self.is_trained).flatten().tolist())

    def for_policy(
        self,
        advantages: Tensor,
        mean: Mean,
        max_length: int,
        *,
        with_sampled: bool,
        with_reference: bool = True,
        policy_mask: Tensor | None = None,
    ) -> NamedArray:
        """The answers that are trained on, with what `PolicyObjective` reads.

        Args:
            advantages: [N] float64.
            mean: what losses are averaged over.
            max_length: tokens of the longest answer that is allowed.
            with_sampled: whether the log-probabilities of sampling are the old ones.
            with_reference: whether the loss reads `ref_logprobs`.
            policy_mask: [N] bool, the tokens with a policy loss; None: all that are trained on.
        """
        weights, norms = token_weights(mean, self.lengths, self.groups, self.is_trained_token, max_length)
        of_tokens = {"advantages": advantages, "weights": weights}
        if with_sampled:
            of_tokens["old_logprobs"] = self.answers["logprobs"]
        if policy_mask is not None:
            of_tokens["policy_mask"] = policy_mask
        read = (*ANSWERS, "logprobs", KEPT_MASS, "old_logprobs", *(("ref_logprobs",) if with_reference else ()))
        return self.trained(read, of_tokens, {"norms": norms})

    def records(
        self,
        config: RewardedConfig,
        context: CallContext,
        difference: Tensor,
        *,
        advantages: Tensor,
        totals: Tensor,
        kl: Tensor | None,
    ) -> list[dict[str, Any]]:
        """Records of the first prompts of the step, for people to read.

        Args:
            config: the configuration of the run.
            context: the run and the step.
            difference: [N] log-probabilities in training less those in sampling, NaN where they are unknown; taken if
                there are no `old_logprobs`.
            advantages: [N].
            totals: [S] rewards to be shown.
            kl: [N] estimate of the KL divergence from the reference; None without one.
        """
        answers, rewards = self.answers, self.rewards
        parts = torch.where(rewards.given, rewards.parts, torch.nan)
        return rollout_records(
            answers,
            context,
            config.keep_rollouts,
            advantages=advantages,
            rewards=torch.where(rewards.any_given, totals, torch.nan),
            reward_parts=dict(zip(reward_names(config), parts.unbind(1), strict=True)),
            difference=answers["old_logprobs"] - answers["logprobs"] if "old_logprobs" in answers else difference,
            kl=kl,
            mask=self.is_trained_token,
        )
