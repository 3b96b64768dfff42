"""The cost of a reallocation, computed from its plan: bytes that each rank sends, receives and keeps, and the time."""

from __future__ import annotations

from dataclasses import dataclass

from reallm.reallocation.plan import Plan


@dataclass(frozen=True)
class PlanCost:
    """The cost of a plan in bytes and seconds."""

    plan: Plan
    itemsize: int
    """Bytes of an element."""
    bandwidth: float
    """Bytes per second that a rank can send, and at the same time receive."""

    def sent(self, rank: int) -> int:
        """Bytes that a rank sends."""
        return self.itemsize * self.plan.sent_elements(rank)

    def received(self, rank: int) -> int:
        """Bytes that a rank receives."""
        return self.itemsize * self.plan.received_elements(rank)

    def kept(self, rank: int) -> int:
        """Bytes that a rank holds before and needs afterwards."""
        return self.itemsize * self.plan.kept_elements(rank)

    @property
    def total_sent(self) -> int:
        """Bytes that are sent."""
        return self.itemsize * self.plan.total_elements

    @property
    def total_kept(self) -> int:
        """Bytes that ranks keep."""
        return sum(map(self.kept, self.plan.ranks))

    @property
    def max_sent(self) -> int:
        """Bytes that the busiest sender sends."""
        return self.itemsize * self.plan.max_sent

    @property
    def min_max_sent(self) -> float:
        """Lower bound: in any plan, some rank sends at least this many bytes."""
        return self.itemsize * self.plan.min_max_sent

    @property
    def max_received(self) -> int:
        """Bytes that the busiest receiver receives."""
        return max(map(self.received, self.plan.ranks))

    @property
    def busiest_rank(self) -> int:
        """The rank that sends or receives most."""
        return max(self.plan.ranks, key=lambda rank: max(self.sent(rank), self.received(rank)))

    @property
    def seconds(self) -> float:
        """Lower bound of the time: the busiest rank's time at full bandwidth."""
        return max(self.sent(self.busiest_rank), self.received(self.busiest_rank)) / self.bandwidth
