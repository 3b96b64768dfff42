"""`--dry-run`: checks all that a run needs, prints its plan, and builds its first batch; nothing is trained or written.

Models are not loaded. Their configurations are checked against their checkpoints and the layout, the files of weights
are read once for values that are not finite, and their memory is estimated, so that a dry run takes one process and the
memory of the data, however large the run.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from rich.console import Console

from reallm.algorithms.graph import Graph
from reallm.checkpoint.finite import check_files_finite
from reallm.checkpoint.load import check_headers
from reallm.config.load import describe
from reallm.config.training import TrainingConfig, max_tokens_per_microbatch, model_args
from reallm.data.batching import gather, n_samples
from reallm.data.namedarray import NamedArray
from reallm.data.packing import micro_batches
from reallm.errors import DataError, counted
from reallm.experiments.checkpointing.open_run import planned_run
from reallm.experiments.preflight.device import choose_device, choose_dtype
from reallm.experiments.preflight.models import planned_model
from reallm.experiments.run.allocation import with_allocation
from reallm.experiments.run.messages import base_model_line, complete_line, overview, planned_model_line
from reallm.experiments.run.plan import Plan, check_names
from reallm.experiments.run.progress import print_line
from reallm.experiments.run.setup import min_vocab_size, planned_tokens, prompt_lengths
from reallm.experiments.runs.info import read_run
from reallm.experiments.runs.settings import plain
from reallm.hf.checkpoint_folder import read_hf_config, resolve_path
from reallm.hf.conversion.config import load_model_config
from reallm.hf.conversion.families import family_for
from reallm.launch.job import Job
from reallm.model.config import ReaLModelConfig
from reallm.specs import Algorithm
from reallm.training.objective import prepare


def dry_run(
    config: TrainingConfig,
    algorithm: Algorithm,
    *,
    name: str | None = None,
    console: Console | None = None,
    job: Job | None = None,
) -> bool:
    """Do everything that `run` does before it loads a model, and print what it would do.

    Returns whether there is anything to train; a run that is complete needs no further steps.

    Args:
        config: see `run`.
        algorithm: see `run`.
        name: see `run`.
        console: see `run`.
        job: the processes of the run, which need not exist; None: as many as its layout takes, all on this machine.

    Raises:
        ReallmError: the run could not start; says why in one line.
    """
    echo = partial(print_line, console or Console())
    n = config.n_processes
    job = Job(size=n, local_size=n) if job is None else job
    graph = Graph.of(algorithm, config)
    check_names(config, algorithm, graph, job)
    config = with_allocation(config, graph, job, echo, partial(prompt_lengths, config, algorithm, graph))
    run = planned_run(config, plain(describe(config).tree()), name)
    if run.is_finished:
        echo(complete_line(read_run(run.folder.path)))
        return False
    plan = Plan.make(config, algorithm, graph, run, job, echo)
    models = {role: _checked_model(plan, graph, role, job) for role in graph.roles}
    lines = [_model_line(plan, role, model, job) for role, model in models.items()]
    for line in [*overview(plan, run, job, lines), *_first_batch(plan, graph, models)]:
        echo(line)
    return True


def _checked_model(plan: Plan, graph: Graph, role: str, job: Job) -> ReaLModelConfig:
    """The architecture of a role's model, as it is trained; its checkpoint and the devices are checked."""
    args = model_args(plan.config, role)
    if not job.is_alone:
        choose_device(args.device, job.local_size - 1)  # the last process needs a GPU too
    folder = resolve_path(args.path)
    model = load_model_config(folder, implementation=args.implementation)
    family = family_for(read_hf_config(folder), folder, args.implementation)
    check_headers(folder, family, model)
    check_files_finite(folder, family, model)
    return planned_model(args, min_vocab_size(plan.config, graph, plan.data.tokenizer, role))


def _model_line(plan: Plan, role: str, model: ReaLModelConfig, job: Job) -> str:
    args = model_args(plan.config, role)
    if role in plan.placement.shared:
        return base_model_line(role, plan.placement.shared[role], args)
    device = choose_device(args.device, job.gpu)
    calls = None if job.is_alone else plan.placement.calls_of(role)
    on = torch.device(device.type)  # each process has its own
    dtype = choose_dtype(args.dtype, device)
    return planned_model_line(role, args.path, model, dtype, on, calls, plan.config.parallel.zero)


def _first_batch(plan: Plan, graph: Graph, models: dict[str, ReaLModelConfig]) -> list[str]:
    """The line about the batch of the first step, or of the next one if the run is resumed."""
    data, trained = plan.data, graph.trained_roles[0]
    step = max(0, plan.point.step if plan.point is not None else 0) + 1
    batch = gather([data.train[row] for row in data.sampler.rows(min(step, data.sampler.total_steps))])
    for role, model in models.items():
        _check_vocabulary(batch, role, model)
    interface: Any = plan.interfaces[trained]
    call = graph.train_calls[0]
    has_inputs = all(key in batch for key in call.inputs)  # otherwise it needs the outputs of other calls
    prepared = prepare(interface, batch) if has_inputs else batch
    lengths = interface.n_tokens(prepared) if has_inputs else planned_tokens(graph, plan.interfaces, trained)(batch)
    text = f"{counted(n_samples(batch), 'sample')}, {counted(sum(lengths), 'token')}"
    if has_inputs and getattr(interface, "weighs_tokens", False):
        text += f", {interface.loss_weight(prepared):,} of them trained"
    n = len(micro_batches(lengths, max_tokens_per_microbatch(plan.config, trained, call.name)))
    return [f"first batch: {text}, packed into {counted(n, 'micro-batch', 'micro-batches')}"]


def _check_vocabulary(batch: NamedArray, role: str, model: ReaLModelConfig) -> None:
    for key in batch:
        if key.endswith("_ids") and batch[key].numel() and int(batch[key].max()) >= model.vocab_size:
            raise DataError(
                f"the first batch has token {int(batch[key].max())}, but the model of {role} has only "
                f"{model.vocab_size:,}; use the tokenizer that belongs to it or, if tokens were added to the "
                f"tokenizer, set {role}.resize_vocab=true"
            )
