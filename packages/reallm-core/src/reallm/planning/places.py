"""`Place`: a call under a plan, with what does not depend on the plans of other calls. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from reallm.planning.costs import MemoryItems
from reallm.planning.execution_plan import CallPlan
from reallm.planning.rank_sets import RankSet


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A call under a plan, with what does not depend on the plans of other calls."""

    call: int
    """Number of the call in the graph."""
    plan: CallPlan
    copy: int
    """Number of the copy of the model, the same for calls that share one; -1 of a reward."""
    ranks: RankSet
    seconds: float
    """Time of the call while no other rank of its nodes computes."""
    contention: float
    """Seconds that it takes longer while all of them compute."""
    neighbours: RankSet
    """The other ranks of its nodes, if there is contention."""
    memory: MemoryItems
    transient: int
    """Bytes that a rank holds while the call is computed, more than it keeps."""

    @property
    def offload(self) -> bool:
        """Whether the copy is offloaded after the call."""
        return self.plan.offload
