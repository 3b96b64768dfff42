"""`Mesh`: a rank's coordinates in a layout, and its process groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from reallm.errors import ConfigError
from reallm.parallel.layout import Coordinate, Layout, as_layout

Group = dist.ProcessGroup
all_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
reduce_scatter_single = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
"""Single-tensor collectives, by their names from torch 2.13 on or else by their older names."""


@dataclass(eq=False)
class Mesh:
    """A layout as seen from one rank. A process group is created when it is first used, by all its members.

    Each pair of neighbouring stages has one group per direction: in a single group, NCCL would make messages in
    opposite directions wait for each other.
    """

    layout: Layout
    rank: int
    """This rank's number in the whole job."""
    timeout: timedelta | None = None
    """Timeout of the process groups: how long a rank waits for another one. None: that of torch's default group."""
    _groups: dict[tuple[object, ...], Group] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, layout: Layout | str, *, timeout: timedelta | None = None) -> Mesh:
        """Make this process' mesh for a layout, or for text such as `tp2pp2`; the process need not be in the layout.

        Raises:
            ConfigError: the job has fewer ranks than the layout names.
        """
        layout = as_layout(layout)
        n_ranks = dist.get_world_size() if dist.is_initialized() else 1
        if max(layout.ranks) >= n_ranks:
            ranks = "one rank" if n_ranks == 1 else f"{n_ranks} ranks"
            raise ConfigError(
                f"the layout {layout} needs rank {max(layout.ranks)}, but the job has {ranks}; start as many processes "
                "with torchrun, which call torch.distributed.init_process_group"
            )
        return cls(layout, dist.get_rank() if dist.is_initialized() else 0, timeout)

    @property
    def is_member(self) -> bool:
        """Whether this rank is in the layout."""
        return self.layout.coordinate(self.rank) is not None

    @property
    def coordinate(self) -> Coordinate:
        """This rank's coordinates; it must be in the layout."""
        coordinate = self.layout.coordinate(self.rank)
        assert coordinate is not None, f"rank {self.rank} is not in {self.layout}"
        return coordinate

    @property
    def all(self) -> Group:
        """All ranks of the layout."""
        return self._group("all", list(self.layout.ranks))

    @property
    def tp(self) -> Group:
        """The tensor-parallel ranks that split this rank's layers."""
        return self._group("tp", self.layout.tp_ranks(self.coordinate))

    @property
    def dp(self) -> Group:
        """The data-parallel ranks that hold the same layers as this rank and use different data."""
        return self._group("dp", self.layout.dp_ranks(self.coordinate))

    @property
    def pp(self) -> Group:
        """The stages of this rank's pipeline."""
        return self._group("pp", self.layout.pp_ranks(self.coordinate))

    @property
    def replica(self) -> Group:
        """The ranks that hold a copy of the whole network between them, to which this rank belongs."""
        return self._group("replica", self.layout.replica_ranks(self.coordinate))

    @property
    def first_and_last_stage(self) -> Group:
        """The first and the last stage of this rank's pipeline, to which this rank must belong."""
        first, *_, last = self.layout.pp_ranks(self.coordinate)
        return self._group("first_and_last_stage", [first, last])

    def p2p_forward_group(self, stage: int) -> Group:
        """The group for messages from `stage` to the next stage; this rank belongs to one of the two."""
        return self._group("p2p_forward", self.layout.pp_ranks(self.coordinate)[stage : stage + 2])

    def p2p_backward_group(self, stage: int) -> Group:
        """The group for messages to `stage` from the next stage; this rank belongs to one of the two."""
        return self._group("p2p_backward", self.layout.pp_ranks(self.coordinate)[stage : stage + 2])

    def subgroup(self, ranks: list[int]) -> Group:
        """The group of these ranks, in this order; this rank is one of them."""
        return self._group("subgroup", ranks)

    def transfer_group(self, ranks: tuple[int, ...], rendezvous: Callable[[str], None]) -> Group:
        """The group of these ranks, which may belong to different layouts; this rank is one of them.

        Args:
            ranks: the ranks of the group.
            rendezvous: called with the name of the group before it is created, to wait for all members.
        """
        return self._group("transfer", list(ranks), prefix="transfer", before=rendezvous)

    @property
    def group_timeout(self) -> timedelta:
        """Timeout of the groups' operations: `timeout`, or that of torch's default group."""
        if self.timeout is not None:
            return self.timeout
        job: Any = dist.group.WORLD
        default: timedelta = job._get_backend(job._device_types[0]).options._timeout
        return default

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank has the embedding."""
        return self.coordinate.pp == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has the head."""
        return self.coordinate.pp == self.layout.pp - 1

    def _group(
        self, kind: str, ranks: list[int], *, prefix: str | None = None, before: Callable[[str], None] | None = None
    ) -> Group:
        assert self.rank in ranks, f"rank {self.rank} is not in the group '{kind}' {ranks}"
        key = (kind, *ranks)
        if key not in self._groups:
            prefix = prefix or f"{self.layout}-{kind}"
            with _group_name(f"{prefix}-{'-'.join(map(str, ranks))}") as name:
                if before is not None:
                    before(name)
                self._groups[key] = dist.new_group(
                    ranks, timeout=self.group_timeout, use_local_synchronization=True, group_desc=prefix
                )
        return self._groups[key]


@contextmanager
def _group_name(prefix: str) -> Iterator[str]:
    """Make `new_group` use this name in the block: the prefix, and the number of groups that already have it.

    The members of a group find each other by its name. By default torch names a group by the number of groups that the
    process has, whatever their ranks; if the members' numbers differ, as on pipeline stages, they wait forever.
    """
    name = f"{prefix}#{sum(known.startswith(f'{prefix}#') for known in c10d._world.pg_names.values())}"
    torch_module: Any = c10d
    original = torch_module._process_group_name
    torch_module._process_group_name = lambda *_, **__: name
    try:
        yield name
    finally:
        torch_module._process_group_name = original
