"""The part of a configuration that says how a training is spread over processes. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from reallm.errors import ConfigError
from reallm.options import option
from reallm.parallel.layout import Layout

PREFIX = "parallel."
"""What the keys begin with. They say where a run computes and not what, and may change when it is resumed."""


@dataclass(frozen=True)
class ParallelArgs:
    """How a training is spread over processes, one for each GPU.

    Raises:
        ConfigError: a size that cannot be; names the key without `parallel.`.
    """

    dp: int | None = option(
        None, "copies that work on other samples of each batch; null: as many as the started processes leave, or 1"
    )
    pp: int = option(1, "stages of the pipeline, each with some of the model's layers")
    tp: int = option(1, "parts into which each layer is split; keep them on one machine")
    zero: Literal[1, 2, 3] = option(
        1,
        "what the dp copies hold only a part of, to save memory: 1 the optimizer's state, "
        "2 gradients as well, 3 parameters as well",
    )
    sequence_parallel: bool = option(
        False, "with tp: between layers, each part holds only some of the tokens, which saves memory"
    )
    timeout_s: float = option(600.0, "seconds that a process waits for another one before the run is given up")

    def __post_init__(self) -> None:
        for key, size in {"dp": self.dp, "pp": self.pp, "tp": self.tp}.items():
            if size is not None and size < 1:
                raise ConfigError(f"{key}={size} must be at least 1")
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s={self.timeout_s} must be more than 0")

    @property
    def n_processes(self) -> int:
        """How many processes the sizes ask for where none have been started."""
        return (self.dp or 1) * self.pp * self.tp

    @property
    def timeout(self) -> timedelta:
        """`timeout_s`."""
        return timedelta(seconds=self.timeout_s)

    def layout(self, n_processes: int, *, trained: bool = True) -> Layout:
        """The layout over so many processes, all of them.

        Args:
            n_processes: of the job.
            trained: whether the dp ranks of the model share its optimizer's state.

        Raises:
            ConfigError: the sizes take another number of processes.
        """
        sizes = {"dp": self.dp, "pp": self.pp, "tp": self.tp}
        asked = " ".join(f"parallel.{name}={size}" for name, size in sizes.items() if size not in (None, 1))
        dp = n_processes // (self.pp * self.tp) if self.dp is None else self.dp
        takes = max(dp, 1) * self.pp * self.tp
        if takes != n_processes:
            or_more = " or a multiple of it" if self.dp is None else ""
            raise ConfigError(
                f"{asked or 'parallel.dp=1'} takes {_processes(takes)}{or_more}, but {n_processes} "
                f"{'was' if n_processes == 1 else 'were'} started; start as many (torchrun --nproc-per-node), or "
                "change the sizes"
            )
        return Layout(dp, self.pp, self.tp, fsdp=trained)


def _processes(n: int) -> str:
    return "1 process" if n == 1 else f"{n} processes"
