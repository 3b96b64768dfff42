"""Forward and backward passes over micro-batches, whichever part of the network is here.

Shapes: X experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from reallm.engine.objective import Objective
from reallm.engine.share import Part, Share
from reallm.engine.sums import Agreed, Sums
from reallm.errors import PeerError
from reallm.model.moe import load_balancing_loss
from reallm.model.routing import Routing, RoutingNotes
from reallm.model.transformer import Transformer
from reallm.parallel.data import before_backward, let_go
from reallm.parallel.local import is_sharded
from reallm.parallel.mesh import Mesh
from reallm.parallel.pipeline import Notes, Pipeline

AUX_LOSS = "aux_loss"
"""The name of the load-balancing loss among metrics."""


class Passes:
    """Passes through a network, of which this process has all or, with a mesh, a part.

    Args:
        model: in training or evaluation mode, as it is when a method is called.
        mesh: where the parts of the network are; None if all of it is here.
        aux_loss_coef: what the load-balancing loss is multiplied by in training; 0 for none.
    """

    def __init__(self, model: Transformer, mesh: Mesh | None, aux_loss_coef: float) -> None:
        self._model, self._mesh, self._aux_loss_coef = model, mesh, aux_loss_coef
        self._pipeline = None if mesh is None or mesh.layout.pp == 1 else Pipeline(model, mesh)
        self._is_broken = False

    def train(self, share: Share, objective: Objective, collect: Callable[[], None]) -> Agreed:
        """Gradients of this share of the loss of the whole batch; `collect` is called after each backward pass.

        Raises:
            PeerError: an earlier error has left split parameters as they are in the middle of a pass.
        """
        step = _Step(self._model, share, objective, self._aux_loss_coef)
        with self._whole_or_broken():
            self._train(step, collect)
        return step.sums.agree(self._mesh)

    @torch.no_grad()
    def evaluate(self, share: Share, objective: Objective) -> Agreed:
        """Sums over the whole batch, without gradients.

        Raises:
            PeerError: see `train`.
        """
        step = _Step(self._model, share, objective, 0.0)
        with self._whole_or_broken():
            self._evaluate(step)
            let_go(self._model)
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
        self._is_broken = is_sharded(self._model)
        yield
        self._is_broken = False


@dataclass
class _Step:
    """Losses of one batch, and what they add up to."""

    model: Transformer
    share: Share
    objective: Objective
    aux_loss_coef: float
    sums: Sums = field(default_factory=Sums)
    notes: dict[int, RoutingNotes] = field(default_factory=dict)
    """Of each micro-batch until its backward pass."""
    routing: dict[int, list[Routing]] = field(default_factory=dict)

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

    def routing_of_all_stages(self) -> Notes:
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

        return Notes((3, moe.n_experts), own, loss)

    def _add_aux_loss(self, part: Part, aux_loss: Tensor) -> None:
        self.sums.add_stats(part, {AUX_LOSS: part.weight * aux_loss.detach()})

    @contextmanager
    def _noted_routing(self, number: int) -> Iterator[None]:
        """Note what routers do in the block, in training with a load-balancing loss."""
        if not self.aux_loss_coef:
            yield
            return
        self.model.routing = self.notes[number] = RoutingNotes()
        try:
            yield
        finally:
            self.model.routing = None
