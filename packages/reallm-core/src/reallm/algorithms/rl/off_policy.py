"""What the loss of a policy compares the present policy with, and what corrects for older answers. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reallm.errors import ConfigError
from reallm.field_types import value_text
from reallm.options import changed

_OF_CORRECTION = (
    "importance_sampling_correction_level", "importance_sampling_clip_max", "importance_sampling_clip_min",
)  # fmt: skip


def compares_with_sampled(args: Any, optimizer_steps: int, async_steps: int) -> bool:
    """Whether the ratio of the loss is to the probabilities of sampling.

    Otherwise it is to those before the step: with one optimizer step in a step the present ones, or those of a call.

    Args:
        args: settings with `old_logprobs`.
        optimizer_steps: optimizer steps in a step.
        async_steps: steps between sampling and training.
    """
    return bool(args.old_logprobs == "rollout" and (optimizer_steps > 1 or async_steps > 0))


def check_off_policy(
    args: Any, optimizer_steps: int, async_steps: int, *, group: str = "", more_steps: Sequence[str]
) -> None:
    """Check the settings that correct for answers of another policy.

    Args:
        args: settings with `old_logprobs`, `importance_sampling_correction`, and those of the correction.
        optimizer_steps: optimizer steps in a step.
        async_steps: steps between sampling and training.
        group: beginning of the keys of the settings, such as `ppo.`.
        more_steps: names of the settings that give a step more optimizer steps.

    Raises:
        ConfigError: a setting has no effect, a bound is not allowed, or older answers would not be corrected for.
    """
    correction = args.importance_sampling_correction
    if not 0 <= args.importance_sampling_clip_min < args.importance_sampling_clip_max:
        raise ConfigError(
            f"{group}importance_sampling_clip_min={args.importance_sampling_clip_min} must be at least 0 and less than "
            f"{group}importance_sampling_clip_max={args.importance_sampling_clip_max}"
        )
    if correction == "none":
        for key, value in changed(args, _OF_CORRECTION).items():
            raise ConfigError(
                f"{group}{key}={value_text(value)} has no effect without {group}importance_sampling_correction"
            )
    elif compares_with_sampled(args, optimizer_steps, async_steps):
        raise ConfigError(
            f"{group}importance_sampling_correction={correction} has no effect with {group}old_logprobs=rollout, where "
            f"the old policy is what was sampled from; set {group}old_logprobs=inference"
        )
    if args.old_logprobs != "inference":
        return
    if optimizer_steps == 1 and not async_steps:
        raise ConfigError(
            f"{group}old_logprobs=inference has no effect with one optimizer step in a step; raise "
            f"{' or '.join(group + key for key in more_steps)}"
        )
    if async_steps and correction == "none":
        raise ConfigError(
            f"async_steps={async_steps} with {group}old_logprobs=inference would not correct for older answers; set "
            f"{group}importance_sampling_correction=truncate"
        )
