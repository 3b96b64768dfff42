"""Measured times for `reallm plan --profile FILE`: measured on the ranks of this machine, unless the file has them."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from reallm.errors import ConfigError, counted
from reallm.launch.cores import n_cores
from reallm.launch.rank_env import RankEnv
from reallm.planning.cost_settings import CostSettings
from reallm.planning.machine import Machine
from reallm.planning.profiling.measure import measure, setting_of
from reallm.planning.profiling.model_times import Sizes
from reallm.planning.profiling.profile import Profile, model_key, read_profiles, write_profile
from reallm.planning.profiling.use import models_to_measure

if TYPE_CHECKING:
    from reallm.algorithms.graph import Graph
    from reallm.launch.job import Job
    from reallm.model.config import ReaLModelConfig

SECONDS_BETWEEN_LINES = 10.0
TIMEOUT = timedelta(minutes=10)


def find_profile(
    file: Path, machine: Machine, graph: Graph, models: Mapping[str, ReaLModelConfig], settings: CostSettings
) -> Profile:
    """The measurements of a file that are those of a machine elsewhere.

    Raises:
        ConfigError: it has none of these models, or those of several settings.
        DataError: it is no file of measurements.
    """
    keys = {model_key(one.config, str(one.dtype)) for one in models_to_measure(graph, models, settings)}
    found = [profile for profile in read_profiles(file).values() if keys & profile.models.keys()]
    if not found:
        raise ConfigError(
            f"--profile {file}: has no measurements of these models; make them on {machine.name}, with the same "
            "command but without --machine"
        )
    if len(found) > 1:
        settings_text = "; ".join(profile.setting for profile in found)
        raise ConfigError(f"--profile {file}: has measurements of several settings ({settings_text}); keep one")
    return found[0]


def profile_here(
    file: Path, machine: Machine, graph: Graph, models: Mapping[str, ReaLModelConfig], settings: CostSettings
) -> Profile:
    """The measurements of this machine with as many ranks; made now, and added to the file, if it lacks some.

    Several ranks are processes that run the same command; they measure and end.
    """
    rank_env = RankEnv.from_environment(os.environ)
    if rank_env is not None:
        from reallm.cli.spawn import run_worker

        run_worker("plan", rank_env, lambda job: _measure_on_rank(file, job, machine, graph, models, settings))
    keys = {model_key(one.config, str(one.dtype)) for one in models_to_measure(graph, models, settings)}
    setting = _setting(machine)
    profile = read_profiles(file).get(setting)
    if profile is None or not keys <= profile.models.keys():
        if machine.n_ranks == 1:
            _measure(file, machine, graph, models, settings)
        else:
            from reallm.cli.spawn import launch

            code = launch(sys.argv[1:], machine.n_ranks)
            if code:
                raise typer.Exit(code)
        profile = read_profiles(file)[setting]
    return profile


def _setting(machine: Machine) -> str:
    import torch

    if machine.device == "cpu" and machine.n_ranks > 1:  # as the launched ranks have them
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", max(1, n_cores() // machine.n_ranks))))
    return setting_of(torch.device(machine.device), machine.n_ranks)


def _measure_on_rank(
    file: Path,
    job: Job,
    machine: Machine,
    graph: Graph,
    models: Mapping[str, ReaLModelConfig],
    settings: CostSettings,
) -> bool:
    import torch

    device = torch.device(machine.device, job.gpu) if machine.device == "cuda" else torch.device("cpu")
    with job.process_groups(device, TIMEOUT):
        _measure(file, machine, graph, models, settings, is_first=job.is_rank0)
    return False


def _measure(
    file: Path,
    machine: Machine,
    graph: Graph,
    models: Mapping[str, ReaLModelConfig],
    settings: CostSettings,
    *,
    is_first: bool = True,
) -> None:
    import torch

    progress = _Progress()
    if is_first:
        typer.echo(f"measuring on {counted(machine.n_ranks, 'rank')}, for some minutes", err=True)
    found = measure(
        models_to_measure(graph, models, settings),
        torch.device(machine.device),
        Sizes(tp=tuple(2**power for power in range(machine.n_ranks.bit_length()))),
        advance=progress.advance if is_first else lambda what, share: None,
    )
    if is_first:
        write_profile(file, found)
        typer.echo(f"written: {file}", err=True)


class _Progress:
    """A line every few seconds: what is measured, the share that is done, the time that is left."""

    def __init__(self) -> None:
        self._begin = self._last = time.monotonic()

    def advance(self, what: str, share: float) -> None:
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        left = (now - self._begin) * (1 - share) / max(share, 0.01)
        typer.echo(f"measuring {what}: {share:.0%}, about {left:.0f} s left", err=True)
