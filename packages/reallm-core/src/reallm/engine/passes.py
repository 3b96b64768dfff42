"""Forward and backward passes over micro-batches, whichever part of the network is here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from reallm.engine.objective import Objective
from reallm.engine.share import Share
from reallm.engine.sums import Agreed, Sums
from reallm.model.moe import load_balancing_loss
from reallm.model.routing import RoutingNotes
from reallm.model.transformer import Transformer
from reallm.parallel.data import before_backward, let_go
from reallm.parallel.mesh import Mesh

AUX_LOSS = "aux_loss"
"""The name of the load-balancing loss among metrics."""


class Passes:
    """Passes through a network, of which this process has all or, with a mesh, a part.

    Args:
        model: in training or evaluation mode, as it is when a method is called.
        aux_loss_coef: what the load-balancing loss is multiplied by in training; 0 for none.
    """

    def __init__(self, model: Transformer, mesh: Mesh | None, aux_loss_coef: float) -> None:
        self._model, self._mesh, self._aux_loss_coef = model, mesh, aux_loss_coef

    def train(self, share: Share, objective: Objective, collect: Callable[[], None]) -> Agreed:
        """Gradients of the share's part of the loss of the whole batch; `collect` is called after each backward."""
        sums = Sums()
        device = next(self._model.parameters()).device

        def forward(number: int) -> Tensor:
            part = share.parts[number]
            with self._noted_routing() as notes:
                output = objective.loss(self._model, part.batch.to(device))
            loss, stats = output.loss_sum / share.weight, dict(output.stats)
            routing = notes.close()
            if routing:
                aux_loss = load_balancing_loss(routing)
                loss = loss + self._aux_loss_coef * (part.weight / share.weight) * aux_loss
                stats[AUX_LOSS] = part.weight * aux_loss.detach()
            sums.add(part, output.loss_sum.detach(), stats)
            return loss if part.weight else loss * 0.0

        n = len(share.parts)
        for number in range(n):
            loss = forward(number)
            before_backward(self._model, is_last=number == n - 1)
            loss.backward()
            collect()
        return sums.agree(self._mesh)

    @torch.no_grad()
    def evaluate(self, share: Share, objective: Objective) -> Agreed:
        """Sums over the whole batch, without gradients."""
        sums = Sums()
        device = next(self._model.parameters()).device
        for part in share.parts:
            output = objective.loss(self._model, part.batch.to(device))
            sums.add(part, output.loss_sum, output.stats)
        let_go(self._model)
        return sums.agree(self._mesh)

    @contextmanager
    def _noted_routing(self) -> Iterator[RoutingNotes]:
        """What routers do in the block, in training with a load-balancing loss; otherwise nothing is noted."""
        notes = RoutingNotes()
        self._model.routing = notes if self._aux_loss_coef else None
        try:
            yield notes
        finally:
            self._model.routing = None
