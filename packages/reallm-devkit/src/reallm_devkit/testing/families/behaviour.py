"""What a model of transformers does, and whether another one does the same.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reallm_devkit.testing.families.closeness import is_close
from reallm_devkit.testing.families.reference import SEED, logits_of, quiet

LENGTHS = (40, 7)
LOSS = 1e-5
"""Difference of losses, in nats, that is no rounding."""


@dataclass(frozen=True)
class Behaviour:
    """What a model of transformers does: logits [T, V] in evaluation, and logits and loss in training."""

    logits: Tensor
    training: Tensor
    loss: Tensor

    def is_like(self, other: Behaviour) -> bool:
        """Whether evaluation gives the same."""
        return is_close(self.logits, other.logits)

    def trains_like(self, other: Behaviour) -> bool:
        """Whether training gives the same."""
        return is_close(self.training, other.training) and bool((self.loss - other.loss).abs() <= LOSS)


def behaviour_of(model: nn.Module, samples: list[Tensor]) -> Behaviour:
    """What it does; training with dropout and noise from a seed."""
    with quiet(), torch.no_grad(), torch.random.fork_rng(devices=()):
        evaluated = logits_of(model, samples)
        torch.manual_seed(SEED)
        model.train()
        trained = model(samples[0][None], labels=samples[0][None], use_cache=False)
        model.eval()
    return Behaviour(evaluated, trained.logits[0], trained.loss)
