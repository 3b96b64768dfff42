"""What a run says about its own rollouts: one notice for each thing that keeps a policy from learning."""

from __future__ import annotations

from collections.abc import Mapping

from reallm.algorithms.rl.total_rewards import Rewards
from reallm.notices import notify_once

MOSTLY = 0.9
"""The share of a step's answers from which they are said to be cut."""
LARGEST_DIFFERENCE = 1.0
"""The largest difference, in nats, between the log-probability of a token in sampling and in training that is not
mentioned. With bfloat16 it is about 0.1 for unlikely tokens."""


def check_rewards(rewards: Rewards, names: list[str], zero_std_share: float, *, in_groups: bool) -> None:
    """Mention rewards that no answer has, that are the same for all answers, or for all answers to each prompt.

    Args:
        rewards: the rewards of a step.
        names: names of the rewards.
        zero_std_share: share of the groups whose rewards are all equal.
        in_groups: whether answers are compared within their group.
    """
    for i, name in enumerate(names):
        values = rewards.parts[:, i][rewards.given[:, i]]
        if not len(values):
            notify_once(
                f"the reward '{name}' gave None for all answers of a step, or failed, so that it has no effect there"
            )
        elif len(values) > 1 and bool((values == values[0]).all()):
            notify_once(
                f"the reward '{name}' was the same for all answers of a step, so that nothing is learnt from it"
            )
    if in_groups and zero_std_share == 1 and bool(rewards.given.any()):
        notify_once(
            "in a step, all answers to each prompt had the same reward, so that nothing was learnt from it: the task "
            "is too easy or too hard for this model, or the reward too coarse; frac_reward_zero_std is the share of "
            "such prompts"
        )


def check_completions(metrics: Mapping[str, float], max_new_tokens: int, key: str = "gen.max_new_tokens") -> None:
    """Mention answers that are mostly cut, given the metrics of completions of a step, the limit and its key."""
    if metrics["completions/clipped_ratio"] >= MOSTLY:
        notify_once(
            f"at least {MOSTLY:.0%} of the answers of a step were cut at {key}={max_new_tokens} before "
            "they ended; raise it, or have the model end earlier"
        )


def check_first_ratio(metrics: Mapping[str, float], *, exact: bool = False) -> None:
    """Mention that training finds other log-probabilities than sampling, given the metrics of the first optimizer step
    of a step, before which both have the same weights. In exact mode they are the same."""
    difference = metrics.get("sampling/sampling_logp_difference/max", 0.0)
    if exact and difference:
        notify_once(
            f"exact=true, but log-probabilities differ by up to {difference:.1e} between sampling and training; this "
            "should not be: please report it"
        )
    elif difference > LARGEST_DIFFERENCE:
        notify_once(
            f"log-probabilities differ by up to {difference:.2f} between sampling and training with the same weights; "
            "set actor.dtype=float32, or look for a layer that computes differently in generation"
        )
