"""A rank's place in a layout, and the process groups in which it talks to the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from reallm.errors import ConfigError
from reallm.parallel.layout import Coordinate, Layout

Group = dist.ProcessGroup
all_gather_single = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
reduce_scatter_single = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)
"""As they are called from torch 2.13 on."""


@dataclass(eq=False)
class Mesh:
    """A layout as a rank in it sees it. Groups are made when they are first asked for, by all their members.

    Each pair of neighbouring stages has a group for each direction: with NCCL, messages that cross would wait for each
    other in a single one.
    """

    layout: Layout
    rank: int
    """In the whole job."""
    timeout: timedelta | None = None
    """How long a rank waits for another one; None: as long as the job's own group does."""
    _groups: dict[tuple[object, ...], Group] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, layout: Layout | str, *, timeout: timedelta | None = None) -> Mesh:
        """A layout, or one as text such as `tp2pp2`, as this process sees it, which may not be in it.

        Raises:
            ConfigError: the job has fewer ranks than the layout names.
        """
        if isinstance(layout, str):
            layout = Layout.parse(layout)
        n_ranks = dist.get_world_size() if dist.is_initialized() else 1
        if max(layout.ranks) >= n_ranks:
            raise ConfigError(f"the layout {layout} takes rank {max(layout.ranks)}, but the job has {n_ranks} ranks")
        return cls(layout, dist.get_rank() if dist.is_initialized() else 0, timeout)

    @property
    def place(self) -> Coordinate | None:
        """This rank's coordinates; None outside of the layout."""
        return self.layout.place(self.rank)

    @property
    def here(self) -> Coordinate:
        """This rank's coordinates in a layout that it is in."""
        assert self.place is not None, f"rank {self.rank} is not in {self.layout}"
        return self.place

    @property
    def all(self) -> Group:
        """All ranks of the layout."""
        return self._group("all", list(self.layout.ranks))

    @property
    def tp(self) -> Group:
        """The ranks that have the other parts of this rank's layers."""
        return self._group("tp", self.layout.tp_ranks(self.here))

    @property
    def dp(self) -> Group:
        """The ranks that do the same on other data."""
        return self._group("dp", self.layout.dp_ranks(self.here))

    @property
    def pp(self) -> Group:
        """The stages of this rank's pipeline."""
        return self._group("pp", self.layout.pp_ranks(self.here))

    @property
    def ends(self) -> Group:
        """The first and the last stage of this rank's pipeline; for these two only."""
        first, *_, last = self.layout.pp_ranks(self.here)
        return self._group("ends", [first, last])

    def p2p_forward_group(self, stage: int) -> Group:
        """From `stage` to the one after it, for these two only; `upward` is the way back."""
        return self._group("down", self.layout.pp_ranks(self.here)[stage : stage + 2])

    def p2p_backward_group(self, stage: int) -> Group:
        """From the stage after `stage` to it, for these two only."""
        return self._group("up", self.layout.pp_ranks(self.here)[stage : stage + 2])

    def among(self, ranks: list[int]) -> Group:
        """The group of these ranks, in this order; for these only."""
        return self._group("among", ranks)

    def transfer_group(self, ranks: tuple[int, ...], rendezvous: Callable[[str], None]) -> Group:
        """The group of these ranks, whatever layouts they are in; for these only.

        Args:
            ranks: this rank and others.
            rendezvous: called with the name of the group before it is made, to wait until all of them have come.
        """
        return self._group("transfer", list(ranks), prefix="transfer", before=rendezvous)

    @property
    def group_timeout(self) -> timedelta:
        """How long operations of the groups wait: `timeout`, or that of the job's own group."""
        if self.timeout is not None:
            return self.timeout
        job: Any = dist.group.WORLD
        default: timedelta = job._get_backend(job._device_types[0]).options._timeout
        return default

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank has the embedding."""
        return self.here.pp == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank has the head."""
        return self.here.pp == self.layout.pp - 1

    def _group(
        self, kind: str, ranks: list[int], *, prefix: str | None = None, before: Callable[[str], None] | None = None
    ) -> Group:
        assert self.rank in ranks, f"rank {self.rank} is none of the '{kind}' group {ranks}"
        key = (kind, *ranks)
        if key not in self._groups:
            prefix = prefix or f"{self.layout}-{kind}"
            with _named(f"{prefix}-{'-'.join(map(str, ranks))}") as name:
                if before is not None:
                    before(name)
                self._groups[key] = dist.new_group(
                    ranks, timeout=self.group_timeout, use_local_synchronization=True, group_desc=prefix
                )
        return self._groups[key]


@contextmanager
def _named(prefix: str) -> Iterator[str]:
    """Let `new_group` name a group in the block: the prefix, and how many groups with it there have been.

    Members find each other by the name. By itself torch takes the number of groups that a process has, of whatever
    ranks; where that differs between the members, as between stages of a pipeline, they wait for each other for ever.
    """
    name = f"{prefix}#{sum(known.startswith(f'{prefix}#') for known in c10d._world.pg_names.values())}"
    torch_names: Any = c10d
    torch_process_group_name = torch_names._process_group_name
    torch_names._process_group_name = lambda *_, **__: name
    try:
        yield name
    finally:
        torch_names._process_group_name = torch_process_group_name
