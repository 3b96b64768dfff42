"""From the rewards and values of a step's answers to the advantages and returns of their tokens.

Shapes: S answers, N tokens of answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reallm.algorithms.ppo.config import PPOArgs, PPOConfig
from reallm.algorithms.rl.gae import gae
from reallm.algorithms.rl.judged_answers import JudgedAnswers
from reallm.algorithms.rl.kl import AdaptiveKLController, FixedKLController
from reallm.algorithms.rl.total_rewards import Rewards, rewards_of
from reallm.data.batching import split_groups
from reallm.data.namedarray import NamedArray
from reallm.training.sequence_scores import answer_lengths

VARIANCE_EPS = 1e-8
"""What is added to the variance of advantages before they are divided by its root."""


@dataclass(frozen=True)
class Judged(JudgedAnswers):
    """The answers of a step with what policy and critic are trained on: those that have tokens and a reward.

    `totals` are scaled, clipped, and with the penalty of answers that were cut.
    """

    kl: Tensor
    """[N] float64: log(policy / reference) of each token before the step; 0 without a reference."""
    advantages: Tensor
    """[N] float64."""
    returns: Tensor
    """[N] float64, as the critic's values would be if they were right."""

    @property
    def kl_of_answers(self) -> float:
        """The KL divergence of whole answers in nats: sums over tokens, as a mean over answers."""
        return float(self.kl.sum()) / len(self.totals)


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
    judged = Judged(answers, rewards, totals, rewards.any_given & has_tokens, kl, advantages, returns)
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
