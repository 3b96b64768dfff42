"""Forward and backward passes over micro-batches, for a whole network or the part of one that this rank holds.

Shapes: L layers with experts, X experts.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from reallm.engine.real_model import ReaLModel
from reallm.model.moe.layer import load_balancing_loss
from reallm.model.router_stats import RouterStats, RouterStatsLog
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import before_backward, is_fsdp, reshard
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import all_gather_json
from reallm.parallel.pipeline_parallel.runner import PipelineRunner, StageReduction
from reallm.training.microbatch import LocalBatch, MicroBatch
from reallm.training.objective import LossOutput, Objective, Totals, add_by_name, check_terms

AUX_LOSS = "aux_loss"
"""The name of the load-balancing loss among metrics."""


class ReducedLosses(NamedTuple):
    """Losses of a batch, summed over all ranks."""

    totals: Totals
    nonfinite_samples: list[str]
    """Names of the samples in micro-batches whose loss is not finite; only with several ranks."""
    choices: Tensor | None = None
    """Tokens [L, X] of this rank that have chosen each expert of this stage's layers, if they are counted; None: none
    has."""


class LossAccumulator:
    """Sums the losses of this rank's micro-batches, in float64 on the device, which is synchronized once at the end."""

    def __init__(self, local_batch: LocalBatch) -> None:
        self._local_batch = local_batch
        self._loss_weights: dict[str, float] = dict.fromkeys(local_batch.loss_weights, 0.0)
        self._n_tokens = 0
        self._loss_sums: dict[str, Tensor] = {}
        self._stats: dict[str, Tensor] = {}
        self._maxima: dict[str, Tensor] = {}
        self._losses: list[tuple[MicroBatch, Mapping[str, Tensor]]] = []

    def add(self, micro_batch: MicroBatch, output: LossOutput, terms: Iterable[str]) -> None:
        """Add the losses of these terms and the statistics of a micro-batch; a padding one adds nothing."""
        if not micro_batch.has_loss:
            return
        self._loss_weights = add_by_name(self._loss_weights, micro_batch.loss_weights)
        self._n_tokens += micro_batch.n_tokens
        loss_sums = {term: output.loss_sums[term].detach() for term in terms}
        self._losses.append((micro_batch, loss_sums))
        _accumulate(self._loss_sums, loss_sums)
        _accumulate(self._stats, output.stats)
        for name, value in output.maxima.items():
            self._maxima[name] = torch.maximum(self._maxima.get(name, value), value)

    def add_aux_loss(self, micro_batch: MicroBatch, aux_loss: Tensor) -> None:
        """Add the load-balancing loss of a micro-batch, with its weight."""
        if micro_batch.has_loss:
            _accumulate(self._stats, {AUX_LOSS: self._local_batch.combined(micro_batch.loss_weights) * aux_loss})

    def local_totals(self) -> Totals:
        """This rank's sums."""
        loss_sums = {
            term: self._loss_sums[term].item() if term in self._loss_sums else 0.0 for term in self._loss_weights
        }
        stats = {name: value.item() for name, value in self._stats.items()}
        maxima = {name: value.item() for name, value in self._maxima.items()}
        return Totals(loss_sums, self._loss_weights, self._n_tokens, stats, maxima)

    def reduce(self, mesh: Mesh | None) -> ReducedLosses:
        """The sums over all ranks of a layout, which must all call it.

        Each micro-batch is counted once, on the last stage and by the first of its tensor-parallel ranks.
        """
        local = self.local_totals()
        if mesh is None:
            return ReducedLosses(local, [])
        contribution = None
        if mesh.is_last_stage and mesh.coordinate.tp == 0:
            nonfinite = [] if math.isfinite(local.loss_sum) else self._nonfinite_samples()
            contribution = [*(getattr(local, item.name) for item in fields(local)), nonfinite]
        gathered = [each for each in all_gather_json(contribution, mesh.all).values() if each is not None]
        totals = sum((Totals(*numbers) for *numbers, _ in gathered), Totals())
        return ReducedLosses(totals, [name for *_, names in gathered for name in names])

    def _nonfinite_samples(self) -> list[str]:
        bad = [
            micro_batch.batch
            for micro_batch, loss_sums in self._losses
            if not all(math.isfinite(each.item()) for each in loss_sums.values())
        ]
        return [name for batch in bad for name in batch.metadata.get("ids", ())]


def _accumulate(sums: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Add 0-dim tensors to sums by name, in float64."""
    for name, value in values.items():
        sums[name] = sums[name] + value.double() if name in sums else value.double()


class ForwardBackward:
    """Forward and backward passes of a model that this process holds as a whole or, with a mesh, in part.

    Args:
        model: the model; methods use whichever of training and evaluation mode it is in.
        mesh: the ranks that share the model; None if this process holds all of it.
        aux_loss_coef: coefficient of the load-balancing loss in training; 0 for none.
        counts_choices: whether training counts the tokens that choose each expert.
    """

    def __init__(
        self, model: ReaLModel, mesh: Mesh | None, aux_loss_coef: float, *, counts_choices: bool = False
    ) -> None:
        self._model, self._mesh, self._aux_loss_coef = model, mesh, aux_loss_coef
        self._counts_choices = counts_choices
        self._pipeline = None if mesh is None or mesh.layout.pp == 1 else PipelineRunner(model.network, mesh)

    def train(
        self, local_batch: LocalBatch, objective: Objective, accumulate_gradients: Callable[[], None]
    ) -> ReducedLosses:
        """Compute what this rank's micro-batches contribute to the gradients of the whole batch's loss.

        Args:
            local_batch: the micro-batches.
            objective: the loss.
            accumulate_gradients: function called after each backward pass.

        Raises:
            PeerError: an earlier error has left the model unusable.
        """
        losses = _BatchLosses(
            self._model.network, local_batch, objective, self._aux_loss_coef, counts_choices=self._counts_choices
        )
        with self._broken_by_error():
            self._train(losses, accumulate_gradients)
        return losses.sums.reduce(self._mesh)._replace(choices=losses.choices)

    @torch.no_grad()
    def evaluate(self, local_batch: LocalBatch, objective: Objective) -> ReducedLosses:
        """Sums over the whole batch, without gradients.

        Raises:
            PeerError: see `train`.
        """
        losses = _BatchLosses(self._model.network, local_batch, objective, aux_loss_coef=0.0)
        with self._broken_by_error():
            self._evaluate(losses)
            reshard(losses.network)
        return losses.sums.reduce(self._mesh)

    def _train(self, losses: _BatchLosses, accumulate_gradients: Callable[[], None]) -> None:
        n = len(losses.local_batch.micro_batches)
        if self._pipeline is None:
            for number in range(n):
                loss = losses.loss_with_aux_loss(number)
                before_backward(losses.network, is_last=number == n - 1)
                loss.backward()
                accumulate_gradients()
            return

        def on_backward(number: int) -> None:
            accumulate_gradients()  # from the previous backward pass
            before_backward(losses.network, is_last=number == n - 1)

        reduction = losses.aux_loss_over_stages() if self._aux_loss_coef else None
        self._pipeline.run(
            n, losses.loss, train=True, on_backward=on_backward, reduction=reduction, n_tokens=losses.n_tokens
        )
        accumulate_gradients()

    def _evaluate(self, losses: _BatchLosses) -> None:
        n = len(losses.local_batch.micro_batches)
        if self._pipeline is None:
            for number in range(n):
                losses.loss(number)
        else:
            self._pipeline.run(n, losses.loss, train=False, n_tokens=losses.n_tokens)

    def _broken_by_error(self) -> AbstractContextManager[None]:
        """Context in which an error makes the model unusable: FSDP or a pipeline is left in the middle of a pass."""
        if self._pipeline is None and not is_fsdp(self._model.network):
            return nullcontext()
        return self._model.broken_by_error(
            "an earlier error has left the model in the middle of a batch; start the job again"
        )


@dataclass
class _BatchLosses:
    """Computes the losses of one batch's micro-batches and sums them."""

    network: Transformer
    local_batch: LocalBatch
    objective: Objective
    aux_loss_coef: float
    counts_choices: bool = False
    sums: LossAccumulator = field(init=False)
    router_stats: dict[int, list[RouterStats]] = field(default_factory=dict)
    """Router statistics by micro-batch, from its forward pass to its backward pass; for the load-balancing loss."""
    choices: Tensor | None = None
    """See `ReducedLosses`."""

    def __post_init__(self) -> None:
        self.sums = LossAccumulator(self.local_batch)

    @property
    def n_tokens(self) -> list[int]:
        """The number of tokens of each micro-batch."""
        return [micro_batch.n_tokens for micro_batch in self.local_batch.micro_batches]

    def loss(self, number: int) -> Tensor:
        """A micro-batch's contribution to the loss of the whole batch, without the load-balancing loss."""
        micro_batch = self.local_batch.micro_batches[number]
        batch = micro_batch.batch.to(next(self.network.parameters()).device)
        with self._logging_routers(number):
            output = self.objective.loss(self.network, batch)
        check_terms(self.objective, "loss", output.loss_sums, self.local_batch.loss_weights)
        terms, weights = self.local_batch.terms, self.local_batch.loss_weights
        self.sums.add(micro_batch, output, terms)
        loss = reduce(operator.add, [output.loss_sums[term] / weights[term] for term in terms])
        return loss if micro_batch.has_loss else loss * 0.0

    def loss_with_aux_loss(self, number: int) -> Tensor:
        """A micro-batch's contribution with the load-balancing loss, if this process holds all layers."""
        loss, micro_batch = self.loss(number), self.local_batch.micro_batches[number]
        if not (self.aux_loss_coef and (router_stats := self.router_stats.pop(number))):
            return loss
        aux_loss = load_balancing_loss(router_stats)
        self.sums.add_aux_loss(micro_batch, aux_loss.detach())
        return loss + self._aux_loss_factor(micro_batch) * aux_loss

    def aux_loss_over_stages(self) -> StageReduction:
        """The load-balancing loss as a reduction over the stages of a pipeline; see `StageReduction` for its split.

        Stages sum [3, X]: the number of tokens that chose each expert, sums of probabilities, and the number of tokens.
        """
        moe = self.network.config.moe
        assert moe is not None

        def local_sums(number: int) -> Tensor:
            sums = torch.zeros(3, moe.n_experts, device=next(self.network.parameters()).device)
            for each in self.router_stats[number]:
                sums += torch.stack(
                    [each.counts.float(), each.prob_sums, torch.full_like(each.prob_sums, each.n_tokens)]
                )
            return sums

        def loss(number: int, total: Tensor) -> Tensor | None:
            micro_batch, router_stats = self.local_batch.micro_batches[number], self.router_stats.pop(number)
            counts, prob_sums, n_tokens = total[0], total[1], total[2, 0].clamp(min=1)
            factor = len(counts) / n_tokens**2
            self.sums.add_aux_loss(micro_batch, (factor * (counts * prob_sums).sum()).detach())
            if not router_stats:
                return None
            local_prob_sums = torch.stack([each.prob_sums for each in router_stats]).sum(dim=0)
            return self._aux_loss_factor(micro_batch) * factor * (counts * local_prob_sums).sum()

        return StageReduction((3, moe.n_experts), local_sums, loss)

    def _aux_loss_factor(self, micro_batch: MicroBatch) -> float:
        combined = self.local_batch.combined
        return self.aux_loss_coef * (combined(micro_batch.loss_weights) / combined(self.local_batch.loss_weights))

    @contextmanager
    def _logging_routers(self, number: int) -> Iterator[None]:
        """Collect router statistics of the forward pass in the block, if anything needs them."""
        if not (self.aux_loss_coef or self.counts_choices):
            yield
            return
        log = self.network.router_stats = RouterStatsLog()
        try:
            yield
        finally:  # a stage of a pipeline leaves the block by an exception
            self.network.router_stats = None
            router_stats = log.close()
            if self.aux_loss_coef:
                self.router_stats[number] = router_stats
            if self.counts_choices and router_stats and self.local_batch.micro_batches[number].has_loss:
                counts = torch.stack([each.counts.long() for each in router_stats])
                self.choices = counts if self.choices is None else self.choices + counts
