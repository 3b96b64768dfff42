"""The outputs of a transformers model in evaluation and training, to compare with those of another one.

Shapes: T tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reallm_devkit.testing.families.closeness import is_close
from reallm_devkit.testing.families.reference import SEED, logits_of, quiet

LENGTHS = (40, 7)
LOSS_TOLERANCE = 1e-5
"""Largest difference of equal losses, in nats."""


@dataclass(frozen=True)
class Behaviour:
    """Outputs of a transformers model: logits [T, V] in evaluation mode, logits and loss in training mode."""

    logits: Tensor
    training: Tensor
    loss: Tensor

    def is_like(self, other: Behaviour) -> bool:
        """Whether the outputs in evaluation mode are equal."""
        return is_close(self.logits, other.logits)

    def trains_like(self, other: Behaviour) -> bool:
        """Whether the outputs in training mode are equal."""
        return is_close(self.training, other.training) and bool((self.loss - other.loss).abs() <= LOSS_TOLERANCE)


def behaviour_of(model: nn.Module, samples: list[Tensor]) -> Behaviour:
    """Run a model in both modes; dropout and noise come from a fixed seed."""
    with quiet(), torch.no_grad(), torch.random.fork_rng(devices=()):
        evaluated = logits_of(model, samples)
        torch.manual_seed(SEED)
        model.train()
        trained = model(samples[0][None], labels=samples[0][None], use_cache=False)
        model.eval()
    return Behaviour(evaluated, trained.logits[0], trained.loss)
