"""Sums over micro-batches, and over the ranks that had them: the same on all ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from reallm.engine.objective import Totals
from reallm.engine.share import Part
from reallm.parallel.mesh import Mesh
from reallm.parallel.words import told_by_all


class Agreed(NamedTuple):
    """What all ranks know of their forward passes."""

    totals: Totals
    suspects: list[str]
    """The samples of micro-batches whose loss is not finite, where several ranks share the work."""


class Sums:
    """Of one rank; added up in float64 on the device, which is waited for once."""

    def __init__(self) -> None:
        self._weight, self._tokens = 0.0, 0
        self._sums: dict[str, Tensor] = {}
        self._losses: list[tuple[Part, Tensor]] = []

    def add(self, part: Part, loss_sum: Tensor, stats: Mapping[str, Tensor]) -> None:
        """Add what a micro-batch gave, 0-dim tensors, unless it only stands in."""
        if not part.weight:
            return
        self._weight += part.weight
        self._tokens += part.size
        self._losses.append((part, loss_sum))
        self.add_stats(part, {"loss_sum": loss_sum, **stats})

    def add_stats(self, part: Part, stats: Mapping[str, Tensor]) -> None:
        """Add more that a micro-batch gave."""
        for name, value in stats.items() if part.weight else ():
            self._sums[name] = self._sums[name] + value.double() if name in self._sums else value.double()

    def totals(self) -> Totals:
        """Of this rank."""
        stats = {name: value.item() for name, value in self._sums.items()}
        return Totals(stats.pop("loss_sum", 0.0), self._weight, self._tokens, stats)

    def agree(self, mesh: Mesh | None) -> Agreed:
        """Of all ranks of a layout, which must all ask.

        Each micro-batch is counted once, on the last stage and by the first of the ranks that split its layers.
        """
        own = self.totals()
        if mesh is None:
            return Agreed(own, [])
        speaks = mesh.is_last_stage and mesh.here.tp == 0
        suspects = [] if math.isfinite(own.loss_sum) else self._suspects()
        said = [own.loss_sum, own.weight, own.tokens, own.stats, suspects] if speaks else None
        heard = [each for each in told_by_all(said, mesh.all).values() if each is not None]
        totals = sum((Totals(*numbers) for *numbers, _ in heard), Totals())
        return Agreed(totals, [name for *_, names in heard for name in names])

    def _suspects(self) -> list[str]:
        bad = [part.batch for part, loss in self._losses if not math.isfinite(loss.item())]
        return [name for batch in bad for name in batch.metadata.get("ids", ())]
