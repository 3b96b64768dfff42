"""Forward and backward passes over micro-batches, whichever part of the network is here.

Shapes: X experts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from reallm.errors import PeerError
from reallm.model.moe.layer import load_balancing_loss
from reallm.model.router_stats import RouterStats, RouterStatsLog
from reallm.model.transformer import Transformer
from reallm.parallel.fsdp import before_backward, is_fsdp, reshard
from reallm.parallel.mesh import Mesh
from reallm.parallel.object_collectives import all_gather_json
from reallm.parallel.pipeline_parallel.runner import PipelineRunner, StageReduction
from reallm.training.microbatch import LocalBatch, MicroBatch
from reallm.training.objective import Objective, Totals

AUX_LOSS = "aux_loss"
"""The name of the load-balancing loss among metrics."""


class ReducedLosses(NamedTuple):
    """What all ranks know of their forward passes."""

    totals: Totals
    suspects: list[str]
    """The samples of micro-batches whose loss is not finite, where several ranks share the work."""


class LossAccumulator:
    """Of one rank; added up in float64 on the device, which is waited for once."""

    def __init__(self) -> None:
        self._weight, self._tokens = 0.0, 0
        self._sums: dict[str, Tensor] = {}
        self._losses: list[tuple[MicroBatch, Tensor]] = []

    def add(self, part: MicroBatch, loss_sum: Tensor, stats: Mapping[str, Tensor]) -> None:
        """Add what a micro-batch gave, 0-dim tensors, unless it only stands in."""
        if not part.weight:
            return
        self._weight += part.weight
        self._tokens += part.size
        self._losses.append((part, loss_sum))
        self.add_stats(part, {"loss_sum": loss_sum, **stats})

    def add_stats(self, part: MicroBatch, stats: Mapping[str, Tensor]) -> None:
        """Add more that a micro-batch gave."""
        for name, value in stats.items() if part.weight else ():
            self._sums[name] = self._sums[name] + value.double() if name in self._sums else value.double()

    def totals(self) -> Totals:
        """Of this rank."""
        stats = {name: value.item() for name, value in self._sums.items()}
        return Totals(stats.pop("loss_sum", 0.0), self._weight, self._tokens, stats)

    def agree(self, mesh: Mesh | None) -> ReducedLosses:
        """Of all ranks of a layout, which must all ask.

        Each micro-batch is counted once, on the last stage and by the first of the ranks that split its layers.
        """
        own = self.totals()
        if mesh is None:
            return ReducedLosses(own, [])
        speaks = mesh.is_last_stage and mesh.here.tp == 0
        suspects = [] if math.isfinite(own.loss_sum) else self._suspects()
        said = [own.loss_sum, own.weight, own.tokens, own.stats, suspects] if speaks else None
        heard = [each for each in all_gather_json(said, mesh.all).values() if each is not None]
        totals = sum((Totals(*numbers) for *numbers, _ in heard), Totals())
        return ReducedLosses(totals, [name for *_, names in heard for name in names])

    def _suspects(self) -> list[str]:
        bad = [part.batch for part, loss in self._losses if not math.isfinite(loss.item())]
        return [name for batch in bad for name in batch.metadata.get("ids", ())]


class ForwardBackward:
    """Passes through a network, of which this process has all or, with a mesh, a part.

    Args:
        model: in training or evaluation mode, as it is when a method is called.
        mesh: where the parts of the network are; None if all of it is here.
        aux_loss_coef: what the load-balancing loss is multiplied by in training; 0 for none.
    """

    def __init__(self, model: Transformer, mesh: Mesh | None, aux_loss_coef: float) -> None:
        self._model, self._mesh, self._aux_loss_coef = model, mesh, aux_loss_coef
        self._pipeline = None if mesh is None or mesh.layout.pp == 1 else PipelineRunner(model, mesh)
        self._is_broken = False

    def train(self, share: LocalBatch, objective: Objective, collect: Callable[[], None]) -> ReducedLosses:
        """Gradients of this share of the loss of the whole batch; `collect` is called after each backward pass.

        Raises:
            PeerError: an earlier error has left split parameters as they are in the middle of a pass.
        """
        step = _Step(self._model, share, objective, self._aux_loss_coef)
        with self._whole_or_broken():
            self._train(step, collect)
        return step.sums.agree(self._mesh)

    @torch.no_grad()
    def evaluate(self, share: LocalBatch, objective: Objective) -> ReducedLosses:
        """Sums over the whole batch, without gradients.

        Raises:
            PeerError: see `train`.
        """
        step = _Step(self._model, share, objective, 0.0)
        with self._whole_or_broken():
            self._evaluate(step)
            reshard(self._model)
        return step.sums.agree(self._mesh)

    def _train(self, step: _Step, collect: Callable[[], None]) -> None:
        n = len(step.share.parts)
        if self._pipeline is None:
            for number in range(n):
                loss = step.loss_with_routing(number)
                before_backward(self._model, is_last=number == n - 1)
                loss.backward()
                collect()
            return

        def on_backward(number: int) -> None:
            collect()  # of the backward pass before
            before_backward(self._model, is_last=number == n - 1)

        notes = step.routing_of_all_stages() if self._aux_loss_coef else None
        self._pipeline.run(n, step.loss, train=True, on_backward=on_backward, notes=notes, sizes=step.sizes)
        collect()

    def _evaluate(self, step: _Step) -> None:
        if self._pipeline is None:
            for number in range(len(step.share.parts)):
                step.loss(number)
        else:
            self._pipeline.run(len(step.share.parts), step.loss, train=False, sizes=step.sizes)

    @contextmanager
    def _whole_or_broken(self) -> Iterator[None]:
        """Passes of a network that FSDP holds, which an error in the block leaves as it is at that point."""
        if self._is_broken:
            raise PeerError("an earlier error has left the model in the middle of a batch; start the job again")
        self._is_broken = is_fsdp(self._model)
        yield
        self._is_broken = False


@dataclass
class _Step:
    """Losses of one batch, and what they add up to."""

    model: Transformer
    share: LocalBatch
    objective: Objective
    aux_loss_coef: float
    sums: LossAccumulator = field(default_factory=LossAccumulator)
    notes: dict[int, RouterStatsLog] = field(default_factory=dict)
    """Of each micro-batch until its backward pass."""
    routing: dict[int, list[RouterStats]] = field(default_factory=dict)

    @property
    def sizes(self) -> list[int]:
        """The tokens of each micro-batch."""
        return [part.size for part in self.share.parts]

    def loss(self, number: int) -> Tensor:
        """What a micro-batch adds to the loss of the whole batch, without what its routing adds."""
        part = self.share.parts[number]
        batch = part.batch.to(next(self.model.parameters()).device)
        with self._noted_routing(number):
            output = self.objective.loss(self.model, batch)
        self.sums.add(part, output.loss_sum.detach(), output.stats)
        loss = output.loss_sum / self.share.weight
        return loss if part.weight else loss * 0.0

    def loss_with_routing(self, number: int) -> Tensor:
        """The same with the load-balancing loss of all layers, which are all here."""
        loss, part = self.loss(number), self.share.parts[number]
        if not (self.aux_loss_coef and (routing := self.notes.pop(number).close())):
            return loss
        aux_loss = load_balancing_loss(routing)
        self._add_aux_loss(part, aux_loss)
        return loss + self.aux_loss_coef * (part.weight / self.share.weight) * aux_loss

    def routing_of_all_stages(self) -> StageReduction:
        """What stages of a pipeline tell each other for the load-balancing loss; see `Notes` for how it is split.

        They are [3, X]: how many tokens chose each expert, the sums of probabilities, and the number of tokens.
        """
        moe = self.model.config.moe
        assert moe is not None

        def own(number: int) -> Tensor:
            routing = self.routing[number] = self.notes.pop(number).close()
            numbers = torch.zeros(3, moe.n_experts, device=next(self.model.parameters()).device)
            for each in routing:
                numbers += torch.stack(
                    [each.counts.float(), each.prob_sums, torch.full_like(each.prob_sums, each.n_tokens)]
                )
            return numbers

        def loss(number: int, total: Tensor) -> Tensor | None:
            part, routing = self.share.parts[number], self.routing.pop(number)
            counts, probs, n_tokens = total[0], total[1], total[2, 0].clamp(min=1)
            factor = len(counts) / n_tokens**2
            self._add_aux_loss(part, factor * (counts * probs).sum())
            if not routing:
                return None
            own_probs = torch.stack([each.prob_sums for each in routing]).sum(dim=0)
            return self.aux_loss_coef * (part.weight / self.share.weight) * factor * (counts * own_probs).sum()

        return StageReduction((3, moe.n_experts), own, loss)

    def _add_aux_loss(self, part: MicroBatch, aux_loss: Tensor) -> None:
        self.sums.add_stats(part, {AUX_LOSS: part.weight * aux_loss.detach()})

    @contextmanager
    def _noted_routing(self, number: int) -> Iterator[None]:
        """Note what routers do in the block, in training with a load-balancing loss."""
        if not self.aux_loss_coef:
            yield
            return
        self.model.router_stats = self.notes[number] = RouterStatsLog()
        try:
            yield
        finally:
            self.model.router_stats = None
