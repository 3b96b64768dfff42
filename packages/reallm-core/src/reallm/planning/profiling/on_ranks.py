"""Measures on as many processes of this machine as a plan has ranks here, and keeps the profile in a file."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch

from reallm.errors import PeerError
from reallm.launch.cores import n_cores
from reallm.launch.launcher import Launcher
from reallm.launch.signals import INTERRUPTED
from reallm.new_python import module_command
from reallm.planning.profiling.measure import measure, setting_of
from reallm.planning.profiling.order import Order
from reallm.planning.profiling.profile import Profile, read_profiles, write_profile
from reallm.planning.profiling.progress import ProfileProgress


def known_profile(file: Path, n_ranks: int) -> Profile | None:
    """What a file has about so many ranks of this machine; None if it has nothing.

    Raises:
        DataError: it is not a file of profiles.
    """
    return read_profiles(file).get(setting_here(n_ranks))


def setting_here(n_ranks: int) -> str:
    """The setting of a profile of so many ranks of this machine."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return setting_of(device, n_ranks, _n_threads(n_ranks))


def measure_on_ranks(order: Order, n_ranks: int, file: Path) -> Profile:
    """Measure models and links, and add what is found to a file. Shows its progress on standard error.

    All ranks measure the same at the same time, each on its GPU or on its share of the cores.

    Args:
        order: what is to be measured.
        n_ranks: number of processes; one alone is this process, which measures no messages.
        file: the file of profiles.

    Returns:
        All that the file has of so many ranks of this machine.

    Raises:
        DataError: the file cannot be read or written, or has something else in it.
        PeerError: a process has failed; it has said why.
        KeyboardInterrupt: the user has stopped it.
    """
    read_profiles(file)  # refused before minutes of work
    if n_ranks == 1:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with ProfileProgress() as progress:
            profile = measure(order.models, device, order.sizes, seconds=order.seconds, advance=progress.advance)
        return write_profile(file, profile)
    with tempfile.TemporaryDirectory() as folder:
        orders, result = Path(folder, "order.json"), Path(folder, "result.json")
        order.write(orders)
        command = [*module_command("reallm.planning.profiling.worker"), str(orders), str(result)]
        environment = {"OMP_NUM_THREADS": str(_n_threads(n_ranks)), **os.environ}
        failure = Launcher(command, n_ranks, environment).run()
        if failure is not None and (failure.user_stopped or failure.code == INTERRUPTED):
            raise KeyboardInterrupt
        if failure is not None:
            how = failure.signal_name or f"exit code {failure.code}"
            raise PeerError(f"rank {failure.rank} of the {n_ranks} that measured has ended with {how}")
        [profile] = read_profiles(result).values()
    return write_profile(file, profile)


def _n_threads(n_ranks: int) -> int:
    """Threads of a rank: as many as it gets when a run is started."""
    return int(
        os.environ.get("OMP_NUM_THREADS") or (torch.get_num_threads() if n_ranks == 1 else max(1, n_cores() // n_ranks))
    )
