"""What this distribution offers to reallm."""

from __future__ import annotations

from reallm.hookspecs import hookimpl
from reallm.specs import DatasetSpec, RewardSpec


@hookimpl
def reallm_datasets() -> dict[str, DatasetSpec]:
    return {
        "reasoning_gym": DatasetSpec(
            dataset="reallm_rewards.reasoning_gym.dataset:ReasoningGymDataset",
            config="reallm_rewards.reasoning_gym.config:ReasoningGymConfig",
            description="questions of a task of reasoning-gym: for reinforcement learning",
            keys=("prompt_ids",),
            example=("task=basic_arithmetic", "size=8"),
        )
    }


@hookimpl
def reallm_rewards() -> dict[str, RewardSpec]:
    return {
        "exact_match": RewardSpec(
            function="reallm_rewards.exact_match:exact_match",
            description="1 if the answer is the reference",
            columns=("answer",),
        ),
        "number_match": RewardSpec(
            function="reallm_rewards.number_match:number_match",
            description="1 if the final number is that of the reference",
            columns=("answer",),
        ),
        "math": RewardSpec(
            function="reallm_rewards.math:math",
            description="1 if the final expression equals the reference, by math-verify",
            columns=("answer",),
            requires=("math_verify",),
            install="reallm-rewards[math]",
        ),
        "format": RewardSpec(
            function="reallm_rewards.format:format",
            description="1 if a regular expression matches, by default <think>...</think><answer>...</answer>",
        ),
        "length": RewardSpec(
            function="reallm_rewards.length:length",
            description="1 for an answer of the wanted length, less for shorter and longer ones",
            columns=("wanted_length",),
        ),
        "reasoning_gym": RewardSpec(
            function="reallm_rewards.reasoning_gym.reward:reasoning_gym",
            description="the score of a task of reasoning-gym, for the dataset of this name",
            columns=("reasoning_gym",),
            requires=("reasoning_gym",),
            install="reallm-rewards[reasoning-gym]",
            example="reallm_rewards.reasoning_gym.example:rows",
        ),
    }
