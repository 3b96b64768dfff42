"""The keys `parallel.*`, which split training over processes. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from reallm.config.group import ConfigGroup
from reallm.errors import ConfigError
from reallm.field_types import check_fields
from reallm.options import option
from reallm.parallel.layout import Layout

PREFIX = "parallel."
"""Prefix of the keys. They do not change what a run computes, so they may change when it is resumed."""


@dataclass(frozen=True)
class ParallelArgs(ConfigGroup, group="parallel"):
    """Settings for splitting training over processes, one for each GPU.

    Raises:
        ConfigError: a value out of range; names the key without `parallel.`.
    """

    dp: int | None = option(
        None, "data parallelism: replicas, each on its share of a batch; null: the processes divided by pp * tp, or 1"
    )
    pp: int = option(1, "pipeline parallelism: stages, each with some of the model's layers")
    tp: int = option(1, "tensor parallelism: ranks that each layer is split over; keep them on one machine")
    zero: Literal[1, 2, 3] = option(
        1,
        "ZeRO stage, what the dp replicas shard to save memory: 1 the optimizer's state, "
        "2 gradients as well, 3 parameters as well",
    )
    sequence_parallel: bool = option(
        False, "with tp: between layers, each rank holds only some of the tokens, which saves memory"
    )
    timeout_s: float = option(600.0, "seconds that a process waits for another one before the run fails")

    def __post_init__(self) -> None:
        check_fields(self)
        for key, size in {"dp": self.dp, "pp": self.pp, "tp": self.tp}.items():
            if size is not None and size < 1:
                raise ConfigError(f"{key}={size} must be at least 1")
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s={self.timeout_s} must be more than 0")

    @property
    def n_processes(self) -> int:
        """Number of processes to start: the product of the sizes."""
        return (self.dp or 1) * self.pp * self.tp

    @property
    def smallest_layout(self) -> Layout:
        """The layout of a trained model over the fewest processes that these sizes allow."""
        return Layout(self.dp or 1, self.pp, self.tp, fsdp=True)

    @property
    def timeout(self) -> timedelta:
        """`timeout_s` as a timedelta."""
        return timedelta(seconds=self.timeout_s)

    def layout(self, n_processes: int, *, trained: bool = True) -> Layout:
        """The layout over all processes of a job.

        Args:
            n_processes: number of processes of the job.
            trained: whether the model is trained, and so sharded over the dp ranks.

        Raises:
            ConfigError: the sizes need another number of processes.
        """
        sizes = {"dp": self.dp, "pp": self.pp, "tp": self.tp}
        given = " ".join(f"parallel.{name}={size}" for name, size in sizes.items() if size not in (None, 1))
        dp = n_processes // (self.pp * self.tp) if self.dp is None else self.dp
        needed = max(dp, 1) * self.pp * self.tp
        if needed != n_processes:
            or_more = " or a multiple of it" if self.dp is None else ""
            raise ConfigError(
                f"{given or 'parallel.dp=1'} takes {_processes(needed)}{or_more}, but {n_processes} "
                f"{'was' if n_processes == 1 else 'were'} started; start as many (torchrun --nproc-per-node), or "
                "change the sizes"
            )
        return Layout(dp, self.pp, self.tp, fsdp=trained)


def _processes(n: int) -> str:
    return "1 process" if n == 1 else f"{n} processes"
