"""What a reallocation costs, from its plan: bytes sent and received."""

from __future__ import annotations

from dataclasses import dataclass

from reallm.parallel.layout import Layout
from reallm.reallocation.plan import Plan


@dataclass(frozen=True)
class Figures:
    """A plan in bytes and seconds."""

    path: str
    dtype: str
    itemsize: int
    source: Layout
    target: Layout
    plan: Plan
    bandwidth: float
    """Bytes a second that a rank can send, and receive at the same time."""

    def sent(self, rank: int) -> int:
        """Bytes."""
        return self.itemsize * self.plan.sent_elements(rank)

    def received(self, rank: int) -> int:
        """Bytes."""
        return self.itemsize * self.plan.received_elements(rank)

    def kept(self, rank: int) -> int:
        """Bytes."""
        return self.itemsize * self.plan.kept_elements(rank)

    @property
    def total(self) -> int:
        """Bytes that are sent."""
        return self.itemsize * self.plan.total_elements

    @property
    def busiest(self) -> int:
        """The rank that sends or receives most."""
        return max(self.plan.ranks, key=lambda rank: max(self.sent(rank), self.received(rank)))

    @property
    def seconds(self) -> float:
        """At best: the time of the busiest rank at full speed."""
        return max(self.sent(self.busiest), self.received(self.busiest)) / self.bandwidth
