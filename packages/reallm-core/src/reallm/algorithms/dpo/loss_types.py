"""The loss types of preference optimisation, as a table. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class LossType:
    """What a loss type computes from the log-probabilities of answers."""

    function: str
    """Name of the function in `reallm.algorithms.losses`."""
    settings: Mapping[str, str] = field(default_factory=lambda: {"beta": "beta"})
    """Argument of the function -> key of the configuration."""
    per_token: bool = False
    """Whether it takes means over the tokens of an answer instead of sums."""
    needs_reference: bool = True
    """Whether it takes log-ratios of policy and reference instead of log-probabilities."""
    takes_f_divergence: bool = False
    """Whether another f-divergence than the reverse KL can take the place of the log-ratio: in all losses of the
    difference of two answers, where what depends on the prompt alone cancels."""
    unpaired: bool = False
    """Whether it is a loss of single answers with a label."""
    matched: Literal["margins", "answers"] | None = None
    """What is compared by rank in the whole batch, instead of the two answers of a pair: the margins of policy and
    reference, or chosen and rejected answers."""


def _settings(**others: str) -> dict[str, str]:
    return {"beta": "beta", **others}


_SMOOTHED = _settings(label_smoothing="label_smoothing")
_UNPAIRED = _settings(desirable_weight="desirable_weight", undesirable_weight="undesirable_weight")

LOSS_TYPES: Mapping[str, LossType] = {
    "sigmoid": LossType("sigmoid_loss", _SMOOTHED, takes_f_divergence=True),
    "sigmoid_norm": LossType("sigmoid_loss", _SMOOTHED, per_token=True, takes_f_divergence=True),
    "hinge": LossType("hinge_loss", takes_f_divergence=True),
    "ipo": LossType("ipo_loss", per_token=True, takes_f_divergence=True),
    "robust": LossType("robust_loss", _SMOOTHED, takes_f_divergence=True),
    "exo_pair": LossType("exo_pair_loss", _SMOOTHED, takes_f_divergence=True),
    "nca_pair": LossType("nca_pair_loss"),
    "bco_pair": LossType("bco_pair_loss"),
    "sppo_hard": LossType("sppo_hard_loss"),
    "aot": LossType("sigmoid_loss", _SMOOTHED, matched="margins"),
    "aot_unpaired": LossType("sigmoid_loss", _SMOOTHED, matched="answers"),
    "apo_zero": LossType("apo_zero_loss"),
    "apo_down": LossType("apo_down_loss"),
    "discopop": LossType("discopop_loss", _settings(tau="discopop_tau"), takes_f_divergence=True),
    "simpo": LossType(
        "simpo_loss",
        _settings(gamma="simpo_gamma", label_smoothing="label_smoothing"),
        per_token=True,
        needs_reference=False,
    ),
    "orpo": LossType("odds_ratio_loss", per_token=True, needs_reference=False),
    "kto": LossType("kto_loss", _UNPAIRED, unpaired=True),
    "apo_zero_unpaired": LossType("kto_loss", _UNPAIRED, unpaired=True),
}
"""Loss type, under TRL's name -> what it computes."""
SFT = "sft"
"""The loss type that is the negative log-likelihood of chosen answers, a mean over their tokens."""
