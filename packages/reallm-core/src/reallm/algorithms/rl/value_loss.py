"""The clipped loss of a critic.

Shapes: N tokens of answers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class ValueLosses(NamedTuple):
    """Losses of a critic's values."""

    losses: Tensor
    """[N], differentiable."""
    clipped: Tensor
    """[N] bool: whether the value has moved too far to have an effect."""


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, eps_clip: float) -> ValueLosses:
    """Half the larger of two squared errors: that of the value, and of the value clipped to `eps_clip` around the old
    one. A value that has moved further towards its return has no gradient.

    Source: the implementation of PPO in OpenAI's baselines.

    Args:
        values: values [N] of the critic that is trained; differentiable.
        old_values: values [N] before the step.
        returns: what they should be, [N].
        eps_clip: how far values may move in a step.
    """
    change = values - old_values
    clipped = old_values + change.clamp(-eps_clip, eps_clip)
    errors, clipped_errors = (values - returns).square(), (clipped - returns).square()
    # within the bounds, both errors are equal up to rounding
    has_no_effect = (change.abs() > eps_clip) & (clipped_errors > errors)
    return ValueLosses(torch.maximum(errors, clipped_errors) / 2, has_no_effect.detach())
