"""Settings of the loss of a policy. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from reallm.algorithms.rl.kl import KLKind

LossKind = Literal["clip", "cispo", "sapo", "vespo"]


@dataclass(frozen=True)
class PolicyLossSettings:
    """What the loss of a policy on its own answers is made of."""

    kind: LossKind = "clip"
    """`clip`: the clipped surrogate (PPO, arXiv 1707.06347); `cispo`: log-probabilities weighed by the bounded ratio
    (2506.13585); `sapo`: a soft gate instead of clipping (2511.20347); `vespo`: log-probabilities weighed by a smooth
    function of the ratio of the whole answer (2602.10693)."""
    level: Literal["token", "sequence"] = "token"
    """Whether a token has its own ratio, or the geometric mean of its answer's (GSPO, 2507.18071)."""
    eps_low: float = 0.2
    """How far below 1 the ratio has an effect."""
    eps_high: float = 0.2
    """How far above 1 the ratio has an effect; for `cispo` its bound."""
    delta: float | None = None
    """Bound of the ratio where advantages are negative (dual clip, 1912.09729)."""
    sapo_temperatures: tuple[float, float] = (1.0, 1.05)
    """Of tokens with an advantage above 0, and of others."""
    vespo_k: tuple[float, float] = (2.0, 3.0)
    """Of answers with an advantage from 0 on, and of others."""
    vespo_lambda: tuple[float, float] = (3.0, 2.0)
    """Of answers with an advantage from 0 on, and of others."""
    beta: float = 0.0
    """Weight of the KL divergence from the reference."""
    kl_estimate: KLKind = "k3_unbiased"
    """How it is estimated; see `kl_estimate`."""
    off_policy_threshold: float | None = None
    """The largest mean of log(sampled / current) of an answer whose tokens with a negative advantage count; None: all
    do."""
    entropy_coef: float = 0.0
    """Weight of the mean entropy of trained tokens, which is subtracted from the loss."""
    temperature: float = 1.0
    """The temperature of sampling, which divides the logits in training too."""
    correction: Literal["none", "truncate", "mask"] = "none"
    """How the loss corrects for the difference between the old policy and what was sampled from."""
    correction_level: Literal["token", "sequence", "geometric"] = "token"
    correction_lowest: float = 0.0
    correction_highest: float = 2.0
