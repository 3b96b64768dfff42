"""The store of this process's job: a file on one machine, a server of torch's on several."""

from __future__ import annotations

from datetime import timedelta

import torch.distributed as dist

from reallm.errors import PeerError
from reallm.launch.listening_socket import listening_socket
from reallm.launch.rank_env import RankEnv
from reallm.launch.store import Store, StoreWithTimeout

_PREFIX = "reallm"


def open_store_file(path: str) -> StoreWithTimeout:
    """The store in a file, which the launcher and its processes have open.

    A call can only be too late if a process was stopped, or killed, while it wrote.
    """
    return _with_timeout(dist.FileStore(path), "the file of the job's store")  # type: ignore[attr-defined]


def connect_store(env: RankEnv, timeout: timedelta) -> StoreWithTimeout:
    """Open the store of the job that this process was started for, and serve it if this process is to do that.

    Raises:
        PeerError: the store is not found within the timeout, or its port is in use.
    """
    if env.store_file is not None:
        return open_store_file(env.store_file)
    where = f"{env.address}:{env.port}"
    try:
        socket = listening_socket(env.address, env.port, not env.is_on_one_machine) if env.is_store_server else None
        server = dist.TCPStore(  # type: ignore[attr-defined]
            env.address,
            env.port,
            world_size=env.size,
            is_master=env.is_store_server,
            timeout=timeout,
            wait_for_workers=False,
            multi_tenant=True,
            master_listen_fd=None if socket is None else socket.detach(),
        )
    except (dist.DistError, RuntimeError, OSError) as error:
        raise PeerError(
            f"rank {env.rank} cannot find rank 0 at {where}, where MASTER_ADDR and MASTER_PORT say it is "
            f"({_first_line(error)}); make sure that all processes were started"
        ) from error
    return _with_timeout(server, f"rank 0 or its launcher, at {where},")


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0].strip()


def _with_timeout(store: Store, server: str) -> StoreWithTimeout:
    return StoreWithTimeout(dist.PrefixStore(_PREFIX, store), server)  # type: ignore[attr-defined, arg-type]
