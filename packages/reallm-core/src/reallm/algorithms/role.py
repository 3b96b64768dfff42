"""`Role`: a loaded model with the engines that the calls to it need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from reallm.algorithms.replicas import Replicas
from reallm.config.args import ModelArgs
from reallm.engine.real_model import ReaLModel
from reallm.model.parameters import n_parameters
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.training.engine import TrainEngine
from reallm.training.eval_engine import EvalEngine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Role:
    """A loaded model with the engines that the calls to it need."""

    model: ReaLModel
    """The home: the copy that is loaded, trained and saved. In a job of several processes, this rank's part of it, or
    nothing of it on a rank outside of its layout."""
    engine: TrainEngine | None
    """The training engine; None for a model that is not trained, and on ranks outside of the home's layout."""
    evaluator: EvalEngine | None
    """Computes the metrics of evaluations: the training engine, if there is one; None without an objective."""
    args: ModelArgs
    checkpoint_dtype: torch.dtype
    """The dtype of the checkpoint that the model was loaded from, in which it is saved again."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """The tokenizer to save with the model; None: that of its checkpoint."""
    meshes: Mapping[Layout, Mesh] = field(default_factory=dict)
    """The meshes of the layouts in which the model is called."""

    base_of: str | None = None
    """The role whose model this is, without its adapters; None: it has a model of its own."""

    @property
    def is_here(self) -> bool:
        """Whether this rank holds a part of the home."""
        return self.model.mesh is None or self.model.mesh.is_member

    @cached_property
    def replicas(self) -> Replicas:
        """The copies of the model, one for each layout in which it is called."""
        return Replicas(self.model, self.engine, self.meshes)

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the whole model, not only of this rank's part."""
        return n_parameters(self.model.config)
