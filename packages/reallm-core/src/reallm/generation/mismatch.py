"""The difference between the log-probabilities of rollouts and those that training computes for the same tokens.

Both are the same function of the logits at one temperature. What differs are the logits: sums in another order, or
weights that have changed in between.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reallm.arguments import check_instance
from reallm.errors import DataError


def logprob_mismatch(rollout: Tensor, training: Tensor, mask: Tensor | None = None) -> dict[str, float]:
    """Metrics of the difference, the first two under the names that TRL has for them.

    `sampling/sampling_logp_difference/max` and `/mean` are of absolute differences, in nats. `sampling/kl` estimates
    the KL divergence, for a token, of the distribution of training from the one that was sampled. Its estimator is k3,
    which is never negative: the mean of `r - 1 - log(r)`, with `r = exp(training - rollout)` (J. Schulman,
    "Approximating KL divergence", 2020).

    Args:
        rollout: [N] log-probabilities of tokens when they were sampled.
        training: [N] log-probabilities of these tokens, from `token_logprobs` at the same temperature.
        mask: [N] bool, the tokens to compare; None: all.

    Returns:
        The metrics; none if there are no tokens.

    Raises:
        DataError: the shapes differ.
        ConfigError: an argument is no tensor.
    """
    for name, value in (("rollout", rollout), ("training", training), ("mask", rollout if mask is None else mask)):
        check_instance(name, value, Tensor, f"write torch.tensor({name})")
        if value.shape != rollout.shape:
            raise DataError(
                f"{name} has the shape {list(value.shape)}, and rollout {list(rollout.shape)}: they must be those of "
                "the same tokens"
            )
    difference = training.double() - rollout.double().to(training.device)
    if mask is not None:
        difference = difference[mask.to(training.device)]
    if not difference.numel():
        return {}
    values = torch.stack((difference.abs().max(), difference.abs().mean(), (difference.expm1() - difference).mean()))
    largest, mean, kl = values.tolist()
    return {
        "sampling/sampling_logp_difference/max": largest,
        "sampling/sampling_logp_difference/mean": mean,
        "sampling/kl": kl,
    }
