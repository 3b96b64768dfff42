"""`EvalEngine`: exact sums of an objective over packed batches, split by a token budget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext

import torch

from reallm.arguments import check_count, check_instance
from reallm.data.namedarray import NamedArray
from reallm.engine.real_model import ReaLModel
from reallm.errors import DataError, kind_of
from reallm.model.exact import ExactMode
from reallm.training.forward_backward import ForwardBackward
from reallm.training.microbatch import split_micro_batches
from reallm.training.objective import Objective, Totals, check_objective, prepare


class EvalEngine:
    """Evaluates a model on batches of any size within a memory budget.

    For a model with a mesh, each rank of the layout has an engine. All ranks make the same calls with the same whole
    batches, compute some of the micro-batches each, and get the same results as a single process, up to the order of
    sums.

    Args:
        model: the model, on the device of its parameters.
        max_tokens_per_microbatch: limit on the tokens of a micro-batch; a longer sample is a micro-batch of its own.
        aux_loss_coef: coefficient of the load-balancing loss when it is trained; an evaluation leaves that loss out.
        counts_choices: whether training counts the tokens that choose each expert.
        exact: whether the log-probability of a token is that of `generate(exact=True)`, bit for bit.

    Raises:
        ConfigError: an argument has the wrong type, or `exact` is not possible.
    """

    def __init__(
        self,
        model: ReaLModel,
        max_tokens_per_microbatch: int,
        *,
        aux_loss_coef: float = 0.0,
        counts_choices: bool = False,
        exact: bool = False,
    ) -> None:
        check_model(model)
        self._exact_mode = ExactMode(model.network) if exact else None
        self.model = model
        self._mesh = None if model.mesh is None or model.mesh.layout.size == 1 else model.mesh
        self._forward_backward = ForwardBackward(model, self._mesh, aux_loss_coef, counts_choices=counts_choices)
        self.max_tokens_per_microbatch = check_count("max_tokens_per_microbatch", max_tokens_per_microbatch)
        """Limit on the tokens of a micro-batch; calls to one model may have different ones."""

    @torch.no_grad()
    def evaluate(self, batches: Iterable[NamedArray], objective: Objective) -> Totals:
        """Sums over all batches, without dropout and without gradients.

        Raises:
            DataError: it is not a list of batches, or one is not a `NamedArray`.
        """
        if not isinstance(batches, Iterable) or hasattr(batches, "metadata"):  # a NamedArray iterates over names
            raise DataError(f"batches must be a list of batches, not {kind_of(batches)}; write evaluate([batch], ...)")
        check_objective(objective)
        with self._evaluating():
            return sum((self._evaluate_prepared(prepare(objective, batch), objective) for batch in batches), Totals())

    def _evaluate_prepared(self, batch: NamedArray, objective: Objective) -> Totals:
        local_batch = split_micro_batches(batch, objective, self.max_tokens_per_microbatch, self._mesh)
        return self._forward_backward.evaluate(local_batch, objective).totals

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.model.training
        self.model.eval()
        try:
            with self._exact_mode or nullcontext():
                yield
        finally:
            self.model.train(was_training)


def check_model(model: ReaLModel) -> None:
    """Raise ConfigError unless it is a `ReaLModel`."""
    check_instance("model", model, ReaLModel, "ReaLModel.from_pretrained(path) loads one")
