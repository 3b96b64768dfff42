"""All that is decided and checked about a run before its models are loaded: layouts, data, steps, memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.config.optimizer import check_unsharded
from reallm.config.training import TrainingConfig, max_tokens_per_microbatch, model_args, role_optimizer
from reallm.data.dataset_stats import measure
from reallm.experiments.checkpointing.open_run import OpenRun
from reallm.experiments.checkpointing.resume import refuse_other_data
from reallm.experiments.checkpointing.resume_point import ResumePoint, resume_point
from reallm.experiments.preflight.checks import check_layouts, check_roles
from reallm.experiments.preflight.memory import memory_lines
from reallm.experiments.preflight.metrics import check_best_metric
from reallm.experiments.preflight.models import planned_model, with_base_models
from reallm.experiments.preflight.weight_updates import check_updates
from reallm.experiments.run.callbacks import callback_offers
from reallm.experiments.run.hub import check_hub
from reallm.experiments.run.loggers import logger_specs
from reallm.experiments.run.setup import Data, check_lengths, load_data, make_interfaces, min_vocab_size, planned_tokens
from reallm.launch.consistency import check_same_on_all_ranks
from reallm.launch.job import Job
from reallm.specs import Algorithm


def check_names(config: TrainingConfig, algorithm: Algorithm, graph: Graph, job: Job) -> None:
    """Check what a configuration names before a run folder is made: roles, loggers, callbacks, repository, tracked
    metric.

    Raises:
        ReallmError: there is no such thing, or the user may not write to the repository.
    """
    check_roles(config, graph)
    logger_specs(config.loggers)
    callback_offers(config.callbacks)
    if config.push_to_hub is not None and job.is_rank0:
        check_hub(config.push_to_hub, "push_to_hub")
    check_best_metric(config, algorithm, graph)


@dataclass(frozen=True)
class Plan:
    """The plan of a run; nothing has been written yet."""

    config: TrainingConfig
    """The configuration; of a resumed run, with the saved models in place of the initial ones."""
    point: ResumePoint | None
    """Where the run is resumed from; None for a new run."""
    placement: Placement
    """Where the calls are computed."""
    interfaces: Mapping[str, Any]
    """An instance of each role's interface class."""
    data: Data
    too_long: list[str]
    """Warnings of samples that are longer than a model is made for."""
    memory: list[str]
    """Lines about the memory that training needs."""

    @classmethod
    def make(
        cls,
        config: TrainingConfig,
        algorithm: Algorithm,
        graph: Graph,
        run: OpenRun,
        job: Job,
        echo: Callable[[str], None],
    ) -> Plan:
        """Load the data and the state to resume from, and check all that can be checked without a model.

        Args:
            config: configuration of the run.
            algorithm: the algorithm, for its interfaces.
            graph: graph of the algorithm.
            run: the run, new or resumed.
            job: the processes that train together.
            echo: prints a line.

        Raises:
            ReallmError: something in the configuration, the data or the saved state is wrong; says what.
        """
        trained, followers = graph.trained_roles, graph.updated_roles
        point = resume_point(run, config.resume, echo, job)
        config = with_base_models(config, [role for role in graph.roles if role not in (*trained, *followers)])
        placement = Placement.of(config, graph, job.size)  # which models share a base depends on the initial adapters
        if point is not None:
            config = point.with_saved_models(config, trained, followers)
        config = with_base_models(config, followers)
        check_layouts(config, graph, known=graph.roles)
        for role in trained if not job.is_alone else ():
            check_unsharded(role_optimizer(config, role), placement.homes[role])
        interfaces = make_interfaces(algorithm, graph, config)
        data = load_data(config, graph, interfaces)
        check_same_on_all_ranks(job, "data", _identity(data, point), config.parallel.timeout)
        n_tokens = {role: min_vocab_size(config, graph, data.tokenizer, role) for role in graph.roles}
        models = {role: planned_model(model_args(config, role), n) for role, n in n_tokens.items()}
        check_updates(graph, models)
        if point is not None and point.state is not None:
            refuse_other_data(point.state.data, data.fingerprint, run.folder)
        args = [model_args(config, name) for name in trained]
        too_long = check_lengths(data.train, data.stats, args)
        if data.valid is not None and data.valid_stats is not None:
            too_long += check_lengths(data.valid, data.valid_stats, args, noun="validation sample")
        largest = {role: _largest(config, graph, interfaces, data, role) for role in graph.roles}
        n_samples = data.sampler.batch_size
        memory = memory_lines(config, graph, placement, interfaces, models, largest, n_samples, job)
        return cls(config, point, placement, interfaces, data, too_long, memory)


def _largest(
    config: TrainingConfig, graph: Graph, interfaces: Mapping[str, Any], data: Data, role: str
) -> tuple[int, ...]:
    """Lengths of the samples in a role's largest micro-batch, which its limit on tokens decides."""
    first = graph.trained_roles[0]
    calls = [call for call in graph.calls if call.role == role and call.kind != "generate"]
    calls = [call for call in calls if call.kind == "train_step"] or calls  # which take more memory for as many tokens
    limits = [max_tokens_per_microbatch(config, role, call.name) for call in calls]
    max_tokens = max(limits, default=max_tokens_per_microbatch(config, role))
    if max_tokens == max_tokens_per_microbatch(config, first, graph.train_calls[0].name):
        return data.stats.largest
    return measure(data.train, planned_tokens(graph, interfaces, first), data.sampler, max_tokens).largest


def _identity(data: Data, point: ResumePoint | None) -> dict[str, str]:
    """Values that all ranks must have read alike, by name."""
    identity = {"the fingerprint of dataset.train_path": data.fingerprint[:12]}
    if point is not None:
        identity["the last save"] = f"that of step {point.step}"
    return identity
