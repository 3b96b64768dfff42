"""This process's rank in its job, read from environment variables of `torchrun`, `srun` or reallm's launcher.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reallm.errors import ConfigError
from reallm.launch.store_file import STORE_FILE

DEFAULT_PORT = 29500


@dataclass(frozen=True)
class RankEnv:
    """A process of a job, as described by environment variables."""

    rank: int
    """Rank in the whole job, from 0."""
    size: int
    """Number of processes in the whole job."""
    local_rank: int
    """Rank among the processes on this machine, from 0."""
    local_size: int
    """Number of processes on this machine."""
    address: str
    """Address of the machine that serves the job's store."""
    port: int
    is_store_server: bool
    """Whether this process serves the store; otherwise a launcher or another rank does."""
    store_file: str | None = None
    """Path of the file that is the store; None if it is served at the address."""

    @property
    def is_on_one_machine(self) -> bool:
        """Whether all processes of the job are on this machine."""
        return self.local_size == self.size

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> RankEnv | None:
        """Read the environment; None if this process is not one of several.

        `torchrun` sets RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR; `srun` sets SLURM_PROCID and SLURM_NTASKS, and
        counts as a launcher only where MASTER_ADDR is set too.

        Raises:
            ConfigError: variables that contradict each other; names them.
        """
        if "RANK" in environment and "WORLD_SIZE" in environment:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        elif "SLURM_PROCID" in environment and "SLURM_NTASKS" in environment and "MASTER_ADDR" in environment:
            names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
        else:
            return None
        rank, size = _number(environment, names[0]), _number(environment, names[1])
        if not 0 <= rank < size:
            raise ConfigError(
                f"{names[0]}={rank} is not below {names[1]}={size}; start all processes of a job in the same way"
            )
        if size == 1:
            return None
        if "MASTER_ADDR" not in environment:
            raise ConfigError(
                f"{names[1]}={size}, but MASTER_ADDR is not set: start with torchrun, or set it to the machine of rank "
                "0 (and MASTER_PORT to a free port there)"
            )
        port = _number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else DEFAULT_PORT
        if port == 0:
            raise ConfigError(
                "MASTER_PORT=0 is not a port that others can find; on one machine use torchrun --standalone"
            )
        local_rank = _number(environment, names[2]) if names[2] in environment else 0
        local_size = _number(environment, names[3]) if names[3] in environment else local_rank + 1
        launcher_serves_store = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(
            rank,
            size,
            local_rank,
            local_size,
            environment["MASTER_ADDR"],
            port,
            is_store_server=rank == 0 and not launcher_serves_store and STORE_FILE not in environment,
            store_file=environment.get(STORE_FILE),
        )

    def to_environment(self) -> dict[str, str]:
        """The inverse of `from_environment`, for a process whose store is a file."""
        assert self.store_file is not None
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            STORE_FILE: self.store_file,
        }


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise ConfigError(f"{name}={text} in the environment must be a whole number; start with torchrun or srun")
    return int(text)
