"""`Role`: a loaded model with the engines that the calls to it need."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

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
    """The role whose model this is, with other adapters or none; None: it has a model of its own."""
    adapter: Mapping[str, Tensor] | None = None
    """The adapter that it has in that model, this rank's part by parameter; None: none."""

    @property
    def is_here(self) -> bool:
        """Whether this rank holds a part of the home."""
        return self.model.mesh is None or self.model.mesh.is_member

    def in_place(self, model: ReaLModel | None, roles: Mapping[str, Role]) -> AbstractContextManager[None]:
        """Context of a call, in which a model that another role trains is that of this role.

        Args:
            model: the copy that the call uses; None: it uses none.
            roles: all roles, by name.
        """
        if self.base_of is None or model is None:
            return nullcontext()
        if self.adapter is None:
            return model.adapters_off()
        roles[self.base_of].wait_until_read()
        return model.other_adapter(self.adapter)

    def wait_until_read(self) -> None:
        """Wait until a save in progress has read the weights, which are to change."""
        if self.engine is not None and self.engine.before_optimizer_step is not None:
            self.engine.before_optimizer_step()

    @cached_property
    def replicas(self) -> Replicas:
        """The copies of the model, one for each layout in which it is called."""
        return Replicas(self.model, self.engine, self.meshes)

    @property
    def n_parameters(self) -> int:
        """Number of parameters of the whole model, not only of this rank's part."""
        return n_parameters(self.model.config)
