"""Measured times for `reallm plan --profile FILE`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from reallm.errors import ConfigError
from reallm.planning.job import PlannedJob
from reallm.planning.profiling.on_ranks import known_profile, measure_on_ranks
from reallm.planning.profiling.order import Order
from reallm.planning.profiling.profile import Profile, read_profiles
from reallm.planning.profiling.use import missing_models, order_for, with_profile


def profiled(job: PlannedJob, file: Path, *, is_here: bool) -> PlannedJob:
    """The job with measured times.

    Args:
        job: the job.
        file: the measurements. Those of this machine are made now, on as many ranks, and added, if the file lacks some.
        is_here: whether it is planned for this machine.

    Raises:
        ConfigError: it is planned for a machine elsewhere, and the file has no measurements of its models, or those of
            several settings.
        DataError: it is no file of measurements.
    """
    order = order_for(job)
    if not is_here:
        return with_profile(job, _from_elsewhere(file, order, job.machine.name), file)
    profile = known_profile(file, job.machine.n_ranks)
    missing = missing_models(order, profile)
    if profile is None or missing:
        profile = measure_on_ranks(dataclasses.replace(order, models=missing), job.machine.n_ranks, file)
    return with_profile(job, profile, file)


def _from_elsewhere(file: Path, order: Order, machine: str) -> Profile:
    found = [profile for profile in read_profiles(file).values() if not missing_models(order, profile)]
    if not found:
        raise ConfigError(
            f"--profile {file}: has no measurements of these models; make them on {machine}, by the same command "
            "without --machine"
        )
    if len(found) > 1:
        settings = "; ".join(profile.setting for profile in found)
        raise ConfigError(f"--profile {file}: has measurements of several settings ({settings}); keep one")
    return found[0]
