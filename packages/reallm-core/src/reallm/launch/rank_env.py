"""As which of how many processes this one was started: what `torchrun`, `srun` or reallm itself say of it.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reallm.errors import ConfigError

DEFAULT_PORT = 29500
LAUNCHER_PIPE = "REALLM_LAUNCHER_PIPE"
"""Environment variable with a file descriptor that is at its end when the launcher is gone."""


@dataclass(frozen=True)
class RankEnv:
    """One process of a job."""

    rank: int
    """Among all, from 0 on."""
    size: int
    """Of the job, in processes."""
    local_rank: int
    """Among those on this machine."""
    local_size: int
    """Processes on this machine."""
    address: str
    """Of the machine where the job's store is."""
    port: int
    is_store_server: bool
    """Whether this process is to serve the store; else rank 0's launcher does, or another rank."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> RankEnv | None:
        """What the environment says; None if this process is alone.

        `torchrun` sets RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR; `srun` sets SLURM_PROCID and SLURM_NTASKS, and
        counts as a launcher where MASTER_ADDR is given too.

        Raises:
            ConfigError: variables that do not fit each other; names them.
        """
        if "RANK" in environment and "WORLD_SIZE" in environment:
            names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        elif "SLURM_PROCID" in environment and "SLURM_NTASKS" in environment and "MASTER_ADDR" in environment:
            names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
        else:
            return None
        rank, size = _number(environment, names[0]), _number(environment, names[1])
        if not 0 <= rank < size:
            raise ConfigError(f"{names[0]}={rank} is not below {names[1]}={size}; start all processes of a job alike")
        if size == 1:
            return None
        if "MASTER_ADDR" not in environment:
            raise ConfigError(
                f"{names[1]}={size}, but MASTER_ADDR is not set: start with torchrun, or set it to the machine of rank "
                "0 (and MASTER_PORT to a free port there)"
            )
        port = _number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else DEFAULT_PORT
        if port == 0:
            raise ConfigError("MASTER_PORT=0 is no port that others can find; on one machine, torchrun --standalone")
        local_rank = _number(environment, names[2]) if names[2] in environment else 0
        local_size = _number(environment, names[3]) if names[3] in environment else local_rank + 1
        elsewhere = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return cls(
            rank,
            size,
            local_rank,
            local_size,
            environment["MASTER_ADDR"],
            port,
            is_store_server=rank == 0 and not elsewhere,
        )

    def to_environment(self) -> dict[str, str]:
        """The variables by which `from_environment` finds the same, in a process that does not serve the store."""
        assert not self.is_store_server
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_size),
            "MASTER_ADDR": self.address,
            "MASTER_PORT": str(self.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # the name by which torch, too, knows of a store elsewhere
        }


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise ConfigError(f"{name}={text} in the environment must be a whole number; start with torchrun or srun")
    return int(text)
