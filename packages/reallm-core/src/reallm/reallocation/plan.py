"""Plans a reallocation: the boxes that ranks send to each other, as few elements as possible and evenly balanced.

A plan depends only on the layouts and is made in one process, in four steps: parameters with equal sharding are grouped
and their owners looked up (`ownership`), each owner of the same elements gets a share of the elements to send, and
these shares are cut into batches (`load_balance`).
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
from reallm.reallocation.ownership import OwnerIndex, TensorGroup, groups_between_boxes, groups_between_layouts
from reallm.reallocation.types import BoxesByRank, RankPlan, Ranks, Transfer

SLACK = 0.05
"""Excess over its share that a rank may send, relative to the busiest rank's load, so that pieces stay large."""


class Route(NamedTuple):
    """A batch and the rank that sends it; not expanded into transfers, which could number millions."""

    source: int
    batch: TransferBatch

    def transfers(self, target: int) -> Iterator[Transfer]:
        """The transfers to one of the targets."""
        return (Transfer(box.names, box.box, self.source, target) for box in self.batch.boxes)


@dataclass(frozen=True, eq=False)
class Plan:
    """A plan that sends each rank every element that it needs but does not hold once; ranks keep what they hold."""

    routes: tuple[Route, ...]
    kept: Mapping[int, tuple[BoxOfParams, ...]]
    """Rank -> the boxes that it holds before and needs afterwards."""
    groups: tuple[TensorGroup, ...]
    min_max_sent: float
    """Lower bound: in any plan for these layouts, some rank sends at least this many elements."""

    def for_rank(self, rank: int) -> RankPlan:
        """The transfers of one rank. Ranks begin with different peers, so that not all wait for the same peer."""
        if rank not in self._rank_plans:
            self._rank_plans[rank] = self._rank_plan(rank)
        return self._rank_plans[rank]

    def _rank_plan(self, rank: int) -> RankPlan:
        sends = [one for route in self._routes_from[rank] for to in route.batch.targets for one in route.transfers(to)]
        receives = [one for route in self._routes_to[rank] for one in route.transfers(rank)]
        n = max(self.ranks, default=0) + 1
        return RankPlan(
            tuple(sorted(sends, key=lambda one: (one.target - rank) % n)),
            tuple(sorted(receives, key=lambda one: (rank - one.source) % n)),
            tuple(Transfer(box.names, box.box, rank, rank) for box in self.kept.get(rank, ())),
        )

    def sent_elements(self, rank: int) -> int:
        """Number of elements that a rank sends."""
        return self._sent.get(rank, 0)

    def received_elements(self, rank: int) -> int:
        """Number of elements that a rank receives."""
        return self._received.get(rank, 0)

    def kept_elements(self, rank: int) -> int:
        """Number of elements that a rank holds before and needs afterwards."""
        return sum(box.numel for box in self.kept.get(rank, ()))

    @cached_property
    def ranks(self) -> Ranks:
        """All ranks that hold elements before or afterwards."""
        both = (by_box for group in self.groups for by_box in (group.source, group.target))
        return tuple(sorted({rank for by_box in both for ranks in by_box.values() for rank in ranks}))

    @cached_property
    def elements_by_pair(self) -> dict[tuple[int, int], int]:
        """(source, target) -> number of elements, for all pairs of ranks that communicate."""
        found: dict[tuple[int, int], int] = defaultdict(int)
        for source, batch in self.routes:
            numel = sum(box.numel for box in batch.boxes)
            for target in batch.targets:
                found[source, target] += numel
        return dict(sorted(found.items()))

    @property
    def total_elements(self) -> int:
        """Number of elements that are sent."""
        return sum(self._sent.values())

    @property
    def max_sent(self) -> int:
        """Number of elements that the busiest sender sends."""
        return max(self._sent.values(), default=0)

    @property
    def n_messages(self) -> int:
        """Number of boxes of single parameters that are sent."""
        return sum(len(batch.targets) * len(box.names) for _, batch in self.routes for box in batch.boxes)

    @cached_property
    def lower_bound(self) -> int:
        """Number of elements that the ranks need but do not hold; no plan can send fewer."""
        return sum(sum(group.n_missing.values()) for group in self.groups)

    @cached_property
    def _rank_plans(self) -> dict[int, RankPlan]:
        return {}

    @cached_property
    def _routes_from(self) -> dict[int, list[Route]]:
        found: dict[int, list[Route]] = defaultdict(list)
        for route in self.routes:
            found[route.source].append(route)
        return found

    @cached_property
    def _routes_to(self) -> dict[int, list[Route]]:
        found: dict[int, list[Route]] = defaultdict(list)
        for route in self.routes:
            for target in route.batch.targets:
                found[target].append(route)
        return found

    @cached_property
    def _sent(self) -> dict[int, int]:
        found: dict[int, int] = defaultdict(int)
        for source, batch in self.routes:
            found[source] += len(batch.targets) * sum(box.numel for box in batch.boxes)
        return found

    @cached_property
    def _received(self) -> dict[int, int]:
        found: dict[int, int] = defaultdict(int)
        for (_, target), numel in self.elements_by_pair.items():
            found[target] += numel
        return found


@lru_cache(maxsize=32)
def plan(config: ReaLModelConfig, source: Layout, target: Layout, names: frozenset[str] | None = None) -> Plan:
    """Plan moving a model's parameters from one layout to another, on the same, overlapping or other ranks.

    `names` are those of the parameters that move; None: all.

    Raises:
        ConfigError: a layout does not fit the model.
    """
    return _plan_groups(groups_between_layouts(config, source, target, names))


def plan_boxes(source: BoxesByRank, target: BoxesByRank, *, itemsizes: Mapping[str, int] | None = None) -> Plan:
    """Plan moving arbitrary tensors from the boxes that ranks hold to the boxes that ranks need.

    `itemsizes` are the bytes of an element by tensor, if they differ: bytes are then balanced instead of elements, and
    `min_max_sent` is in bytes.

    Raises:
        ConfigError: no rank holds some elements that a rank needs; names the tensor.
    """
    return _plan_groups(groups_between_boxes(source, target, itemsizes))


def _plan_groups(groups: list[TensorGroup]) -> Plan:
    demands, kept = _demands(groups)
    # Neighbours in a sequence of batches have neighbouring targets, so that a sender has few targets.
    batches = {
        owners: [TransferBatch(targets, tuple(boxes)) for targets, boxes in sorted(by_targets.items())]
        for owners, by_targets in demands.items()
    }
    shares = balance_senders({owners: sum(one.weight for one in sequence) for owners, sequence in batches.items()})
    slacks = _slacks(shares.by_owners, SLACK * shares.min_max_sent)
    routes = [
        Route(source, batch)
        for owners, sequence in batches.items()
        for source, cut in zip(owners, cut_by_sender(sequence, shares.by_owners[owners], slacks[owners]), strict=True)
        for batch in cut
    ]
    return Plan(tuple(routes), {rank: tuple(boxes) for rank, boxes in kept.items()}, tuple(groups), shares.min_max_sent)


def _demands(
    groups: list[TensorGroup],
) -> tuple[dict[Ranks, dict[Ranks, list[BoxOfParams]]], dict[int, list[BoxOfParams]]]:
    """Owners -> targets that need their boxes -> these boxes; and rank -> the boxes that it keeps."""
    demands: dict[Ranks, dict[Ranks, list[BoxOfParams]]] = defaultdict(lambda: defaultdict(list))
    kept: dict[int, list[BoxOfParams]] = defaultdict(list)
    for group in groups:
        index = OwnerIndex(group.source)
        for box, ranks in group.target.items():
            owned = index.lookup(box)
            if sum(piece.numel for piece, _ in owned) < box.numel:
                raise ConfigError(f"no rank has all of '{group.names[0]}': rank {ranks[0]} needs {_format(box)}")
            needing = frozenset(ranks)
            for piece, owners in owned:
                boxes = BoxOfParams(group.names, piece, group.itemsize)
                keeping = needing.intersection(owners)
                for rank in keeping:
                    kept[rank].append(boxes)
                targets = tuple(rank for rank in ranks if rank not in keeping) if keeping else ranks
                if targets:
                    demands[owners][targets].append(boxes)
    return demands, kept


def _slacks(shares: Mapping[Ranks, tuple[float, ...]], slack: float) -> dict[Ranks, float]:
    """The error allowed for each cut so that a rank's total stays within `slack`: two cuts in each sequence."""
    n_sequences: dict[int, int] = defaultdict(int)
    for owners, amounts in shares.items():
        for rank, amount in zip(owners, amounts, strict=True):
            n_sequences[rank] += amount > 0 and len(owners) > 1
    return {owners: slack / (2 * max(1, *(n_sequences[rank] for rank in owners))) for owners in shares}


def _format(box: Box) -> str:
    return "[" + ", ".join(f"{start}:{stop}" for start, stop in zip(box.starts, box.stops, strict=True)) + "]"
