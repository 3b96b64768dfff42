"""`evaluate`: the metrics of checkpoints on rows, as an evaluation in training computes them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch.distributed as dist
from rich.console import Console

from reallm.algorithms.context import CallContext
from reallm.algorithms.executor import GraphExecutor
from reallm.algorithms.graph import Graph
from reallm.algorithms.placement import Placement
from reallm.algorithms.role import Role
from reallm.config.dataset import batch_size
from reallm.config.load import describe
from reallm.config.training import TrainingConfig, model_args
from reallm.data.batching import batches_in_order, n_samples
from reallm.data.dataset_stats import fingerprint, measure
from reallm.data.datasets import Samples, make_dataset
from reallm.data.mixture import MixedSamples
from reallm.data.namedarray import NamedArray
from reallm.data.sampler import StepSampler
from reallm.data.tokenization.progress import RowProgress
from reallm.engine.diagnosis import model_fault
from reallm.errors import DataError, NonFiniteError
from reallm.experiments.preflight.memory import explained_shortage
from reallm.experiments.preflight.models import with_base_models
from reallm.experiments.run.messages import model_line
from reallm.experiments.run.progress import print_line
from reallm.experiments.run.setup import (
    check_lengths,
    check_vocabularies,
    distributed_context,
    load_roles,
    load_run_tokenizer,
    make_interfaces,
    planned_tokens,
    report,
)
from reallm.experiments.runs.settings import plain
from reallm.launch.consistency import check_same_on_all_ranks
from reallm.launch.job import Job
from reallm.parallel.object_collectives import all_gather_json
from reallm.specs import Algorithm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Echo = Callable[[str], None]
"""Prints a line."""


@dataclass(frozen=True)
class EvalResult:
    """The outcome of an evaluation."""

    metrics: Mapping[str, float]
    """Metrics by the names that they have in training, such as `eval/loss`."""
    n_samples: int
    seconds: float
    """Time of the computation, without loading."""


def evaluate(
    config: TrainingConfig, algorithm: Algorithm, *, console: Console | None = None, job: Job | None = None
) -> EvalResult:
    """Compute the metrics of an algorithm's models on rows, exactly as its evaluation in training does.

    The rows are those that training would evaluate: the dataset's validation data, or its training data if it has no
    other. Nothing is trained or written. In a job of many processes all of them call it and get the same result.

    Args:
        config: configuration of the algorithm; what concerns training alone is not used.
        algorithm: graph and interfaces, such as `registry.get("algorithm", "sft")`.
        console: console on which progress is printed; None is the standard output.
        job: the processes that evaluate together; None: this process alone.

    Raises:
        ReallmError: the configuration, the data or a checkpoint is wrong; says why in one line.
    """
    job = job or Job()
    console = (console or Console()) if job.is_rank0 else Console(quiet=True, force_terminal=False)
    graph = Graph.of(algorithm, config)
    config = with_base_models(config, graph.roles)
    with distributed_context(config, plain(describe(config).tree()), graph, job):
        interfaces = make_interfaces(algorithm, graph, config)
        tokenizer, _ = load_run_tokenizer(config, graph)
        check_vocabularies(config, graph, interfaces, tokenizer)
        samples, size = _load_rows(config, graph, tokenizer), batch_size(config.dataset, "valid")
        rows = {"the fingerprint of the rows": fingerprint(samples)[:12]}
        check_same_on_all_ranks(job, "data", rows, config.parallel.timeout)
        first = graph.trained_roles[0]
        sampler = StepSampler(len(samples), size, 1, None, config.seed)
        stats = measure(samples, planned_tokens(graph, interfaces, first), sampler, config.max_tokens_per_microbatch)
        too_long = check_lengths(samples, stats, [model_args(config, role) for role in graph.trained_roles])
        placement = Placement.of(config, graph, job.size)
        roles = load_models(config, graph, placement, graph.roles, tokenizer, job, partial(print_line, console))
        for line in (f"rows: {report(samples)}", *too_long):
            print_line(console, line)
        started = time.monotonic()
        with (
            explained_shortage("evaluation", roles, config),
            RowProgress("evaluating", lambda: len(samples), console=console) as progress,
        ):
            batches = partial(_batches, size=size, progress=progress)
            context = CallContext(tokenizer, config.seed, 0, 0, config.max_tokens_per_microbatch, training=False)
            executor = GraphExecutor(graph, roles, interfaces, placement)
            metrics = executor.evaluate_samples(samples, batches, context)
        if not all(map(math.isfinite, metrics.values())):
            refuse_nonfinite_models(config, roles, job)
        return EvalResult(metrics, len(samples), time.monotonic() - started)


def load_models(
    config: TrainingConfig,
    graph: Graph,
    placement: Placement,
    names: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    job: Job,
    echo: Echo,
) -> dict[str, Role]:
    """Load the models of the named roles without what training needs, and print a line about each."""
    roles = load_roles(config, graph, names, tokenizer, job, placement, horizons=None)
    for name, role in roles.items():
        echo(model_line(name, role, config, placement))
    return roles


def refuse_nonfinite_models(config: TrainingConfig, roles: Mapping[str, Role], job: Job) -> None:
    """Raise an error if a model gives nothing finite, whatever the rows; all ranks of a job call this.

    Raises:
        NonFiniteError: names the model and the weight or the block at fault.
    """
    for name, role in roles.items():
        fault = model_fault(role.model.network, role.model.mesh) if role.is_here else None
        if not job.is_alone:
            assert dist.group.WORLD is not None
            by_rank = all_gather_json(fault, dist.group.WORLD).values()
            fault = next((one for one in by_rank if one is not None), None)
        if fault is not None:
            path = model_args(config, name).path
            raise NonFiniteError(f"{path} gives results that are NaN or infinite, whatever the rows; {fault}")


def _load_rows(config: TrainingConfig, graph: Graph, tokenizer: PreTrainedTokenizerBase) -> Samples:
    """The samples to evaluate."""
    splits = config.datasets()
    split = "valid" if "valid" in splits else "train"
    samples = make_dataset(splits[split], seed=config.seed, tokenizer=tokenizer)
    if not len(samples):
        raise DataError(f"dataset '{splits[split].name}' gives no samples to evaluate ({report(samples)})")
    graph.check_producers(tuple(samples[0].keys()), splits[split].name)
    # the weights of a mixture to train on say how often its rows are drawn; here each is evaluated once
    return replace(samples, weights={}) if isinstance(samples, MixedSamples) else samples


def _batches(samples: Samples, size: int, progress: RowProgress) -> Iterator[NamedArray]:
    """All samples in batches, as in training."""
    for batch in batches_in_order(samples, size):
        yield batch
        progress.advance(n_samples(batch))
