"""From the rewards and values of a step's answers to the advantages and returns of their tokens.

Shapes: S answers, F rewards of each, N tokens of answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from reallm.algorithms.ppo.config import PPOArgs, PPOConfig
from reallm.algorithms.rl.gae import gae
from reallm.algorithms.rl.kl import AdaptiveKLController, FixedKLController
from reallm.algorithms.rl.total_rewards import Rewards, rewards_of
from reallm.data.batching import select, split_groups
from reallm.data.namedarray import NamedArray, split
from reallm.training.sequence_scores import answer_lengths

VARIANCE_EPS = 1e-8
"""What is added to the variance of advantages before they are divided by its root."""


@dataclass(frozen=True)
class Judged:
    """The answers of a step with what policy and critic are trained on."""

    answers: NamedArray
    """Each answer as a sample; `groups` tell which prompt it belongs to."""
    rewards: Rewards
    totals: Tensor
    """[S] float64: rewards as they are trained on, scaled, clipped, and with the penalty of answers that were cut."""
    kl: Tensor
    """[N] float64: log(policy / reference) of each token before the step; 0 without a reference."""
    advantages: Tensor
    """[N] float64."""
    returns: Tensor
    """[N] float64, as the critic's values would be if they were right."""
    is_trained: Tensor
    """[S] bool: whether an answer is trained on: one with tokens and a reward."""

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

    @property
    def kl_of_answers(self) -> float:
        """The KL divergence of whole answers in nats: sums over tokens, as a mean over answers."""
        return float(self.kl.sum()) / len(self.totals)

    def trained(
        self, keys: list[str], of_tokens: Mapping[str, Tensor], of_answers: Mapping[str, Tensor] | None = None
    ) -> NamedArray:
        """The answers that are trained on, with the given keys of theirs, and further fields [N] and [S]."""
        more, seqlens = {**of_tokens, **(of_answers or {})}, self.answers.metadata["seqlens"]
        sizes = {name: seqlens["logprobs" if name in of_tokens else "prompt_lens"] for name in more}
        whole = self.answers.with_fields(**more).with_metadata(seqlens={**seqlens, **sizes})
        read = split(whole, [[*keys, *more]])[0]
        return select(read, torch.nonzero(self.is_trained).flatten().tolist())


def judge(batch: NamedArray, config: PPOConfig, kl_coef: float) -> Judged:
    """The answers of a batch with their advantages and returns, computed in float64 over the whole step.

    The reward of an answer is that of its last token. An answer without any reward, or without tokens, takes no part.

    Args:
        batch: what `actor_train` and `critic_train` read.
        config: the configuration of the run.
        kl_coef: weight of the KL divergence in the step.
    """
    args = config.ppo
    answers = split_groups(batch, dict.fromkeys(batch, 1))
    lengths, rewards = answer_lengths(answers), rewards_of(batch, config)
    before = answers["old_logprobs" if "old_logprobs" in answers else "logprobs"].double()
    kl = before - answers["ref_logprobs"].double() if "ref_logprobs" in answers else torch.zeros_like(before)
    totals = total_rewards(rewards, answers["truncated"], args)
    of_tokens = -kl_coef * kl if args.kl_penalty == "reward" else torch.zeros_like(kl)
    has_tokens = lengths > 0
    of_tokens[lengths.cumsum(0)[has_tokens] - 1] += totals[has_tokens]
    goes_on = answers["truncated"] if args.truncated_reward == "bootstrap" else torch.zeros_like(answers["truncated"])
    bootstrap = torch.where(goes_on, answers["end_values"], 0.0) if goes_on.any() else torch.zeros_like(totals)
    advantages, returns = gae(of_tokens, answers["values"], lengths, bootstrap, args.discount, args.gae_lambda)
    judged = Judged(answers, rewards, totals, kl, advantages, returns, rewards.any_given & has_tokens)
    if args.adv_norm:
        advantages[:] = whitened(advantages, judged.is_trained_token)
    return judged


def total_rewards(rewards: Rewards, truncated: Tensor, args: PPOArgs) -> Tensor:
    """Rewards [S] float64 as they are trained on: shifted, scaled, clipped, and with the penalty of answers that were
    cut. Those of answers without any reward are 0."""
    scaled = (rewards.totals - args.reward_output_bias) * args.reward_output_scaling
    clipped = scaled.clamp(-args.max_reward_clip, args.max_reward_clip)
    penalty = args.missing_eos_penalty if args.truncated_reward == "penalty" else 0.0
    return torch.where(rewards.any_given, clipped - penalty * truncated, 0.0)


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """Values shifted and scaled to mean 0 and standard deviation 1 over a mask; others are 0."""
    found = values[mask]
    if not len(found):
        return torch.zeros_like(values)
    scale = (found.var(correction=0) + VARIANCE_EPS).rsqrt()
    return torch.where(mask, (values - found.mean()) * scale, 0.0)


def kl_controller(args: PPOArgs) -> FixedKLController | AdaptiveKLController:
    """What keeps the weight of the KL divergence. Policy and critic have one each, which see the same and agree."""
    if args.use_adaptive_kl_ctl:
        return AdaptiveKLController(args.kl_ctl, args.adaptive_kl_target, args.adaptive_kl_horizon)
    return FixedKLController(args.kl_ctl)
