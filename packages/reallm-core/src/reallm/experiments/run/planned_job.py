"""`planned_job`: what the plan of a run is made for, as `plan.*`, the dataset and the machine say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reallm.algorithms.graph import Graph
from reallm.config.training import TrainingConfig, model_args
from reallm.errors import ConfigError
from reallm.experiments.preflight.models import planned_model
from reallm.launch.job import Job

if TYPE_CHECKING:
    from reallm.planning.configured_workload import ConfiguredWorkload
    from reallm.planning.job import PlannedJob


def planned_job(
    config: TrainingConfig, graph: Graph, job: Job, prompt_lengths: Callable[[], Sequence[int]]
) -> tuple[PlannedJob, str]:
    """What a plan is made for, and the same in words.

    Args:
        config: the configuration.
        graph: its graph.
        job: the processes.
        prompt_lengths: finds the tokens of the prompts of some steps; called if `plan.prompt_lens` is not given.

    Raises:
        ReallmError: a key of `plan.*` is wrong, or the dataset cannot be read.
    """
    from reallm.planning.configured_workload import configured_workload
    from reallm.planning.find_machine import find_machine
    from reallm.planning.job import PlannedJob
    from reallm.planning.known_machines import with_ranks

    args = config.plan
    lengths = prompt_lengths() if args.prompt_lens is None else ()
    workload = configured_workload(config, graph, measured_prompts=lengths)
    machine = find_machine(args.machine, None if args.machine else job.local_size, "plan.machine=")
    models = {role: planned_model(model_args(config, role), None) for role in graph.roles}
    found = PlannedJob.of(config, graph, models, with_ranks(machine, job.size), workload.workload)
    if args.profile is not None:
        found = _measured(found, Path(args.profile), job.local_size)
    return found, _in_words(found, workload)


def _in_words(job: PlannedJob, lengths: ConfiguredWorkload) -> str:
    workload = job.workload
    parts = [job.machine.name, f"prompts of {workload.prompts.mean:,.0f} tokens ({lengths.prompts_from})"]
    if workload.answers.mean:
        parts.append(f"answers of {workload.answers.mean:,.0f} ({lengths.answers_from.partition(':')[0]})")
    sources = sorted({job.costs.rates[role].source for role in job.models})
    return ", ".join([*parts, f"times {' and '.join(sources)}"])


def _measured(job: PlannedJob, file: Path, n_ranks: int) -> PlannedJob:
    """The job with the times that were measured of its models on so many ranks of this machine."""
    from reallm.planning.profiling.on_ranks import known_profile, setting_here
    from reallm.planning.profiling.use import missing_models, order_for, with_profile

    key, command = f"plan.profile={file}", f"reallm plan with --ranks {n_ranks} --profile {file}"
    remedy = f"measure them here, by {command}"
    if not file.exists():
        raise ConfigError(f"{key}: there is no such file; measure times here, by {command}")
    profile = known_profile(file, n_ranks)
    if profile is None:
        raise ConfigError(f"{key}: has no times of this machine ({setting_here(n_ranks)}); {remedy}")
    if missing_models(order_for(job), profile):
        raise ConfigError(f"{key}: has no times, or not all, of the models of this run; {remedy}")
    return with_profile(job, profile, file)
