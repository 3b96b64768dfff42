"""What calls, moves and copies cost: the interface between models of the cost and the simulator. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from reallm.algorithms.placement import Transfer
from reallm.parallel.layout import Layout
from reallm.planning.execution_plan import CallPlan


@dataclass(frozen=True)
class CallCost:
    """The time of a call, in seconds, by what it is spent on."""

    compute: float
    communication: float = 0.0
    """Collectives of tensor and data parallelism, and messages between pipeline stages, that nothing hides."""
    bubble: float = 0.0
    """Idle time of a pipeline."""
    n_microbatches: int = 1
    contention: float = 0.0
    """Seconds that it takes longer while all other ranks of its nodes compute too; not among those above."""

    @property
    def seconds(self) -> float:
        """The whole time while no other rank of its nodes computes."""
        return self.compute + self.communication + self.bubble


@dataclass(frozen=True)
class MoveCost:
    """What a reallocation of a model's parameters from one layout to another costs."""

    seconds: float
    n_bytes: int
    """Bytes that are sent, by all ranks together: exactly those that an executed plan sends."""
    busiest: int = 0
    """Bytes that the busiest rank sends or receives."""


@dataclass(frozen=True)
class MemoryItems:
    """Bytes of one copy of a role's model on one rank of a call."""

    parameters: int
    gradients: int = 0
    """While it is trained."""
    optimizer: int = 0
    activations: int = 0
    """While the call is computed."""
    kv_cache: int = 0
    """While it generates."""
    other: Mapping[str, int] = field(default_factory=dict)
    """What else there is, by its name."""

    @property
    def kept(self) -> int:
        """Bytes that stay between calls, unless they are offloaded."""
        return self.parameters + self.optimizer

    @property
    def during(self) -> dict[str, int]:
        """Bytes that are there only while the call is computed, by their names."""
        return {
            "gradients": self.gradients,
            "activations": self.activations,
            "KV cache": self.kv_cache,
            **self.other,
        }

    @property
    def in_call(self) -> int:
        """Bytes while the call is computed."""
        return self.kept + self.gradients + self.activations + self.kv_cache + sum(self.other.values())


class CostModel(Protocol):
    """Times and sizes of the parts of a step, for any layout. All methods are pure, and cheap when asked again."""

    def call(self, name: str, plan: CallPlan) -> CallCost:
        """The time of a call on its ranks, all of which begin and end together."""
        ...

    def move(self, role: str, source: Layout, target: Layout) -> MoveCost:
        """The time to bring the weights of a role from the home to a copy."""
        ...

    def data(self, transfer: Transfer) -> MoveCost:
        """The time to send outputs of a call from one rank to another."""
        ...

    def host_copy(self, role: str, layout: Layout, *, with_optimizer: bool) -> MoveCost:
        """The time to bring a copy of a role's model to host memory, or back; bytes of one rank."""
        ...

    def token_limits(self, name: str) -> Sequence[int | None]:
        """The most tokens of micro-batches that a call may be given, from the most to the least; None: as configured.

        Only what its results do not depend on, beyond the order of sums.
        """
        ...

    def memory(self, name: str, plan: CallPlan) -> MemoryItems:
        """Bytes on a rank of the layout, the fullest, of the copy that a call uses."""
        ...
