"""`Machine`: the nodes, devices and links that a plan is made for. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from reallm.arguments import NamedFields
from reallm.errors import ConfigError
from reallm.field_types import check_fields


@dataclass(frozen=True)
class Link(NamedFields):
    """A connection of a rank: messages in one direction, at the same time as those in the other.

    Raises:
        ConfigError: a value is not allowed; names the field.
    """

    bandwidth: float
    """Bytes per second."""
    latency: float
    """Seconds before the first byte."""

    def __post_init__(self) -> None:
        check_fields(self)
        _check_above_0(self, "bandwidth")
        if not self.latency >= 0:
            raise ConfigError(f"latency={self.latency} must be 0 or more")

    def seconds(self, n_bytes: float) -> float:
        """Time of one message."""
        return self.latency + n_bytes / self.bandwidth


@dataclass(frozen=True)
class Machine(NamedFields):
    """Nodes of equal devices, one rank for each device; ranks are numbered node by node.

    Raises:
        ConfigError: a value is not allowed; names the field.
    """

    name: str
    n_nodes: int
    ranks_per_node: int
    memory: int
    """Bytes that a rank can allocate on its device."""
    host_memory: int
    """Bytes of host memory for each rank, for what is offloaded; on a CPU the same memory as `memory`."""
    flops: float
    """Floating-point operations per second that a large matrix product reaches, in the dtype of the models."""
    memory_bandwidth: float
    """Bytes per second that a rank reads from its device's memory."""
    within_node: Link
    between_nodes: Link
    """The share of the node's network that each rank has when all use it."""
    host: Link
    """Copies between a device and host memory."""
    device: Literal["cuda", "cpu"] = "cuda"
    """Kind of the devices. On a GPU collectives proceed while it computes, on a CPU both take turns."""

    def __post_init__(self) -> None:
        check_fields(self)
        _check_above_0(self, "n_nodes", "ranks_per_node", "memory", "host_memory", "flops", "memory_bandwidth")

    @property
    def n_ranks(self) -> int:
        """Number of ranks."""
        return self.n_nodes * self.ranks_per_node

    def fits(self, memory: int, host_memory: int) -> bool:
        """Whether a rank has so many bytes, and bytes of host memory."""
        both = memory + host_memory if self.device == "cpu" else memory  # on a CPU it is the same memory
        return both <= self.memory and host_memory <= self.host_memory

    def excess(self, memory: int, host_memory: int) -> float:
        """Share of a rank's memory by which so many bytes, and bytes of host memory, are too many; 0: they fit."""
        if self.fits(memory, host_memory):
            return 0.0
        both = memory + host_memory if self.device == "cpu" else memory
        return max(both / self.memory, host_memory / self.host_memory) - 1.0

    def node(self, rank: int) -> int:
        """The node of a rank."""
        return rank // self.ranks_per_node

    def link(self, ranks: Iterable[int]) -> Link:
        """The link that limits messages among these ranks."""
        return self.within_node if len({self.node(rank) for rank in ranks}) <= 1 else self.between_nodes


def _check_above_0(values: Link | Machine, *names: str) -> None:
    for name in names:
        if not getattr(values, name) > 0:
            raise ConfigError(f"{name}={getattr(values, name)} must be more than 0")
