"""`EvalEngine`: exact sums of an objective over packed batches, split by a token budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.training.forward_backward import ForwardBackward
from reallm.training.microbatch import split_micro_batches
from reallm.training.objective import Objective, Totals


class EvalEngine:
    """Evaluates a model on batches of any size within a memory budget.

    For a model with a mesh, each rank of the layout has an engine. All ranks make the same calls with the same whole
    batches, compute some of the micro-batches each, and get the same results as a single process, up to the order of
    sums.

    Args:
        model: the model, on the device of its parameters.
        max_tokens_per_microbatch: limit on the tokens of a micro-batch; a longer sample is a micro-batch of its own.
        aux_loss_coef: coefficient of the load-balancing loss when it is trained; an evaluation leaves that loss out.
    """

    def __init__(self, model: ReaLModel, max_tokens_per_microbatch: int, *, aux_loss_coef: float = 0.0) -> None:
        self.model = model
        self._mesh = None if model.mesh is None or model.mesh.layout.size == 1 else model.mesh
        self._forward_backward = ForwardBackward(model, self._mesh, aux_loss_coef)
        self._max_tokens = max_tokens_per_microbatch

    @torch.no_grad()
    def evaluate(self, batches: Iterable[NamedArray], objective: Objective) -> Totals:
        """Sums over all batches, without dropout and without gradients."""
        with self._evaluating():
            return sum((self._evaluate_batch(batch, objective) for batch in batches), Totals())

    def _evaluate_batch(self, batch: NamedArray, objective: Objective) -> Totals:
        local_batch = split_micro_batches(batch, objective, self._max_tokens, self._mesh)
        return self._forward_backward.evaluate(local_batch, objective).totals

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(was_training)
