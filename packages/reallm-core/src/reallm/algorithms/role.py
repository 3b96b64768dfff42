"""`Role`: a loaded model with the engines that the calls to it need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from reallm.config.args import ModelArgs
from reallm.engine.real_model import ReaLModel
from reallm.model.parameters import n_parameters
from reallm.training.engine import TrainEngine
from reallm.training.eval_engine import EvalEngine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Role:
    """A loaded model with the engines that the calls to it need."""

    model: ReaLModel
    engine: TrainEngine | None
    """The training engine; None for a model that is not trained."""
    evaluator: EvalEngine | None
    """Computes the metrics of evaluations: the training engine, if there is one; None without an objective."""
    args: ModelArgs
    checkpoint_dtype: torch.dtype
    """The dtype of the checkpoint that the model was loaded from, in which it is saved again."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """The tokenizer to save with the model; None: that of its checkpoint."""

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the whole model, not only of this rank's part."""
        if self.model.mesh is not None:
            return n_parameters(self.model.config)
        return sum(parameter.numel() for parameter in self.model.parameters())
