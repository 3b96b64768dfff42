"""What goes from which rank to which so that parameters lie in another layout: as little as can be, evenly sent.

A plan is made from the layouts alone, on one process and without any of the ranks, in four steps: which parameters lie
alike (`spread`), who has what (`cells`), how much each of those who have the same sends (`balance`), and which pieces
these are (`bundles`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

from reallm.errors import ConfigError
from reallm.model.config import ReaLModelConfig
from reallm.model.sharding import Box
from reallm.parallel.layout import Layout
from reallm.reallocation.load_balance import BoxOfParams, TransferBatch, balance_senders, cut_by_sender
from reallm.reallocation.ownership import OwnerIndex, TensorGroup, between_boxes, between_layouts
from reallm.reallocation.types import RankPlan, Ranks, Transfer

SLACK = 0.05
"""How much more than it must a rank may send, of what the busiest must, so that pieces stay large."""


class Route(NamedTuple):
    """Parts that one rank sends to each of others. Moves, kept together: there can be millions of them."""

    source: int
    bundle: TransferBatch

    def moves(self, target: int) -> Iterator[Transfer]:
        """What one of the targets gets."""
        return (Transfer(part.names, part.box, self.source, target) for part in self.bundle.parts)


@dataclass(frozen=True, eq=False)
class Plan:
    """Every element that a rank is to have and does not is sent to it once; what it has, it keeps."""

    routes: tuple[Route, ...]
    kept: Mapping[int, tuple[BoxOfParams, ...]]
    """Rank -> what it has already of what it is to have."""
    spreads: tuple[TensorGroup, ...]
    min_max_sent: float
    """In any plan for these layouts, some rank sends at least as many elements."""

    def for_rank(self, rank: int) -> RankPlan:
        """A rank's share. Ranks begin with different partners, so that no one is waited for by all at once."""
        if rank not in self._rank_plans:
            self._rank_plans[rank] = self._rank_plan(rank)
        return self._rank_plans[rank]

    def _rank_plan(self, rank: int) -> RankPlan:
        sends = [move for route in self._from[rank] for to in route.bundle.targets for move in route.moves(to)]
        receives = [move for route in self._to[rank] for move in route.moves(rank)]
        n = self._n_ranks
        return RankPlan(
            tuple(sorted(sends, key=lambda move: (move.target - rank) % n)),
            tuple(sorted(receives, key=lambda move: (rank - move.source) % n)),
            tuple(Transfer(part.names, part.box, rank, rank) for part in self.kept.get(rank, ())),
        )

    def sent_elements(self, rank: int) -> int:
        """How many elements a rank sends."""
        return self._sent.get(rank, 0)

    def received_elements(self, rank: int) -> int:
        """How many elements a rank receives."""
        return self._received.get(rank, 0)

    def kept_elements(self, rank: int) -> int:
        """How many elements a rank has already of those that it is to have."""
        return sum(part.numel for part in self.kept.get(rank, ()))

    @cached_property
    def ranks(self) -> Ranks:
        """All ranks that have or are to have something."""
        both = (holders for spread in self.spreads for holders in (spread.held, spread.wanted))
        return tuple(sorted({rank for holders in both for ranks in holders.values() for rank in ranks}))

    @cached_property
    def pairs(self) -> dict[tuple[int, int], int]:
        """(source, target) -> elements, of all pairs that have anything to do with one another."""
        found: dict[tuple[int, int], int] = defaultdict(int)
        for source, bundle in self.routes:
            numel = sum(part.numel for part in bundle.parts)
            for target in bundle.targets:
                found[source, target] += numel
        return dict(sorted(found.items()))

    @property
    def total_elements(self) -> int:
        """All that is sent."""
        return sum(self._sent.values())

    @property
    def most_sent(self) -> int:
        """What the busiest sender sends."""
        return max(self._sent.values(), default=0)

    @property
    def n_messages(self) -> int:
        """Parts of single parameters that are sent."""
        return sum(len(bundle.targets) * len(part.names) for _, bundle in self.routes for part in bundle.parts)

    @cached_property
    def lower_bound(self) -> int:
        """What the ranks are to have and do not, in elements; no plan can send less."""
        return sum(sum(spread.n_missing.values()) for spread in self.spreads)

    @cached_property
    def _rank_plans(self) -> dict[int, RankPlan]:
        return {}

    @cached_property
    def _from(self) -> dict[int, list[Route]]:
        found: dict[int, list[Route]] = defaultdict(list)
        for route in self.routes:
            found[route.source].append(route)
        return found

    @cached_property
    def _to(self) -> dict[int, list[Route]]:
        found: dict[int, list[Route]] = defaultdict(list)
        for route in self.routes:
            for target in route.bundle.targets:
                found[target].append(route)
        return found

    @cached_property
    def _n_ranks(self) -> int:
        return max(self.ranks, default=0) + 1

    @cached_property
    def _sent(self) -> dict[int, int]:
        found: dict[int, int] = defaultdict(int)
        for source, bundle in self.routes:
            found[source] += len(bundle.targets) * sum(part.numel for part in bundle.parts)
        return found

    @cached_property
    def _received(self) -> dict[int, int]:
        found: dict[int, int] = defaultdict(int)
        for _, bundle in self.routes:
            numel = sum(part.numel for part in bundle.parts)
            for target in bundle.targets:
                found[target] += numel
        return found


@lru_cache(maxsize=32)
def plan(config: ReaLModelConfig, source: Layout, target: Layout) -> Plan:
    """How a model's parameters get from one layout to another, which may lie on the same, on some of the same, or on
    other ranks.

    Raises:
        ConfigError: a layout does not fit the model.
    """
    return _plan(between_layouts(config, source, target))


def plan_boxes(
    source: Mapping[int, Mapping[str, Box]],
    target: Mapping[int, Mapping[str, Box]],
    *,
    itemsizes: Mapping[str, int] | None = None,
) -> Plan:
    """How any tensors get from where they are to where they are to be: rank -> tensor's name -> its part there.

    `itemsizes` are bytes of an element by tensor, where they differ: it is then bytes that are evenly sent, and
    `min_max_sent` is in bytes.

    Raises:
        ConfigError: a rank is to have what no rank has; names the tensor.
    """
    return _plan(between_boxes(source, target, itemsizes))


def _plan(spreads: list[TensorGroup]) -> Plan:
    wanted, kept = _demands(spreads)
    lines = {ranks: _line(bundles) for ranks, bundles in wanted.items()}
    shares = balance_senders({ranks: sum(bundle.weight for bundle in line) for ranks, line in lines.items()})
    slacks = _slacks(shares.of, SLACK * shares.least)
    routes = [
        Route(source, bundle)
        for ranks, line in lines.items()
        for source, bundles in zip(ranks, cut_by_sender(line, shares.of[ranks], slacks[ranks]), strict=True)
        for bundle in bundles
    ]
    return Plan(tuple(routes), {rank: tuple(parts) for rank, parts in kept.items()}, tuple(spreads), shares.least)


def _demands(
    spreads: list[TensorGroup],
) -> tuple[dict[Ranks, dict[Ranks, list[BoxOfParams]]], dict[int, list[BoxOfParams]]]:
    """Ranks that have the same -> ranks that need it -> the parts; and what each rank keeps."""
    wanted: dict[Ranks, dict[Ranks, list[BoxOfParams]]] = defaultdict(lambda: defaultdict(list))
    kept: dict[int, list[BoxOfParams]] = defaultdict(list)
    for spread in spreads:
        holdings = OwnerIndex(spread.held)
        for box, ranks in spread.wanted.items():
            cells = holdings.cells(box)
            if sum(cell.numel for cell, _ in cells) < box.numel:
                raise ConfigError(f"no rank has all of '{spread.names[0]}': rank {ranks[0]} is to have {_text(box)}")
            needing = frozenset(ranks)
            for cell, holders in cells:
                part = BoxOfParams(spread.names, cell, spread.itemsize)
                keeping = needing.intersection(holders)
                for rank in keeping:
                    kept[rank].append(part)
                others = tuple(rank for rank in ranks if rank not in keeping) if keeping else ranks
                if others:
                    wanted[holders][others].append(part)
    return wanted, kept


def _line(bundles: Mapping[Ranks, list[BoxOfParams]]) -> list[TransferBatch]:
    """Neighbours in it have neighbouring targets: a sender then has few of them."""
    return [TransferBatch(targets, tuple(parts)) for targets, parts in sorted(bundles.items())]


def _slacks(shares: Mapping[Ranks, tuple[float, ...]], slack: float) -> dict[Ranks, float]:
    """By how much the cuts of each line may miss, for all errors at a rank to be within `slack`: two in each line."""
    n_lines: dict[int, int] = defaultdict(int)
    for ranks, amounts in shares.items():
        for rank, amount in zip(ranks, amounts, strict=True):
            n_lines[rank] += amount > 0 and len(ranks) > 1
    return {ranks: slack / (2 * max(1, *(n_lines[rank] for rank in ranks))) for ranks in shares}


def _text(box: Box) -> str:
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in zip(box.starts, box.stops, strict=True)) + "]"
