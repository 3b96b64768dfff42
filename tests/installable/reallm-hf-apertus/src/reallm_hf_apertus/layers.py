"""The activation of Apertus, which has parameters."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from reallm import ReaLModelConfig
from reallm.model.sharding import Shards

BETA = 0.5
EPS = -1e-6
ALPHA = 0.8
"""Of a fresh model. The alphas are softplus of the parameters, and thus positive."""


class XIELU(nn.Module):
    """xIELU (Huang and Schlag, 2024): a parabola above zero, an exponential below, both with a learned factor.

    `beta` and `eps` are in checkpoints and are not learned.
    """

    partial_grad = True  # of the features between the two linear layers

    def __init__(self, config: ReaLModelConfig, block: int) -> None:
        super().__init__()
        self.alpha_p = nn.Parameter(torch.empty(1))
        self.alpha_n = nn.Parameter(torch.empty(1))
        self.beta = nn.Parameter(torch.empty(()), requires_grad=False)
        self.eps = nn.Parameter(torch.empty(()), requires_grad=False)
        self.shards: Shards = dict.fromkeys(("alpha_p", "alpha_n", "beta", "eps"), None)

    def fresh_parameter(self, name: str, generator: torch.Generator) -> Tensor:
        """A fresh model's values; other parameters than matrices would begin at one."""
        alphas = {"alpha_p": _inverse_softplus(ALPHA), "alpha_n": _inverse_softplus(ALPHA - BETA)}
        return torch.full_like(self.get_parameter(name), {**alphas, "beta": BETA, "eps": EPS}[name])

    def forward(self, x: Tensor) -> Tensor:
        positive = softplus(self.alpha_p) * x * x
        negative = (torch.expm1(torch.minimum(x, self.eps)) - x) * (self.beta + softplus(self.alpha_n))
        return torch.where(x > 0, positive, negative) + self.beta * x


def _inverse_softplus(y: float) -> float:
    return math.log(math.expm1(y))
