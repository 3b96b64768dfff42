"""From a configuration to the parts of a run: tokenizer, datasets, models, and the plan of its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from reallm.algorithms.executor import LoadedModel, Role
from reallm.config.args import ModelArgs
from reallm.config.dataset import batch_size
from reallm.config.parallel import PREFIX
from reallm.config.training import TrainingConfig, model_args
from reallm.data.dataset_stats import DatasetStats, fingerprint, measure
from reallm.data.datasets import Samples, make_dataset
from reallm.data.namedarray import NamedArray
from reallm.data.sampler import StepSampler
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError, DataError
from reallm.experiments.preflight.device import choose_device, choose_dtype
from reallm.experiments.reports.number_format import counted
from reallm.hf.checkpoint_folder import resolve_path
from reallm.hf.conversion.config import load_model_config
from reallm.hf.conversion.transformers_io import load_tokenizer
from reallm.launch.job import Job
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.parallel.sharding import check_fits
from reallm.specs import Algorithm, ModelFunctionCall
from reallm.training.engine import TrainEngine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Data:
    """The tokenized data sets, the plan of steps over the first, and what those steps are made of."""

    train: Samples
    valid: Samples | None
    valid_batch_size: int
    plan: StepSampler
    survey: DatasetStats
    fingerprint: str
    """Of the training data."""
    tokenizer: PreTrainedTokenizerBase


def make_interfaces(algorithm: Algorithm, order: Sequence[ModelFunctionCall]) -> dict[str, Any]:
    """The interface of each role, in the order in which the roles are first called."""
    return {role: algorithm.interface_class(role)() for role in dict.fromkeys(call.role for call in order)}


def trained_roles(order: Sequence[ModelFunctionCall]) -> list[str]:
    """The roles that the graph trains."""
    return list(dict.fromkeys(call.role for call in order if call.kind == "train_step"))


def choose_layouts(config: TrainingConfig, order: Sequence[ModelFunctionCall], job: Job) -> dict[str, Layout] | None:
    """How the model of each role is spread over the job; None for a process alone.

    Raises:
        ConfigError: the sizes do not fit the number of processes.
    """
    trained = trained_roles(order)
    roles = dict.fromkeys(call.role for call in order)
    layouts = {role: config.parallel.layout(job.size, trained=role in trained) for role in roles}
    return None if job.is_alone else layouts


def check_layouts(config: TrainingConfig, layouts: Mapping[str, Layout] | None) -> None:
    """Whether the models can be spread so, by their configs alone.

    Raises:
        ConfigError: names the size.
    """
    for role, layout in (layouts or {}).items():
        args = model_args(config, role)
        try:
            check_fits(load_model_config(args.path), layout)
        except ConfigError as error:
            raise ConfigError(f"{PREFIX}{error} ({role}.path={args.path})") from error


def load_data(config: TrainingConfig, order: Sequence[ModelFunctionCall], interfaces: Mapping[str, Any]) -> Data:
    """Tokenize the data sets with the tokenizer of the model that is trained first.

    Raises:
        ReallmError: a tokenizer or a data set that cannot be read, is empty, or lacks keys the algorithm needs;
            settings that do not fit the data.
    """
    trained = trained_roles(order)[0]
    tokenizer = load_tokenizer(resolve_path(model_args(config, trained).path))
    splits = config.datasets()
    built = {split: make_dataset(dataset, seed=config.seed, tokenizer=tokenizer) for split, dataset in splits.items()}
    train, valid = built["train"], built.get("valid")
    if not len(train):
        raise DataError(f"dataset '{splits['train'].name}' gives no samples to train on ({described(train)})")
    if valid is not None and not len(valid):
        valid = None
    _check_keys(train[0], order, splits["train"].name)
    plan = StepSampler(len(train), batch_size(config.dataset, "train"), config.epochs, config.max_steps, config.seed)
    _check_plan(config, plan, has_valid=valid is not None)
    seen = measure(train, interfaces[trained].n_tokens, plan, config.max_tokens_per_microbatch)
    return Data(train, valid, batch_size(config.dataset, "valid"), plan, seen, fingerprint(train), tokenizer)


def load_models(
    config: TrainingConfig,
    interfaces: Mapping[str, Any],
    order: Sequence[ModelFunctionCall],
    total_steps: int,
    job: Job,
    layouts: Mapping[str, Layout] | None,
) -> dict[str, LoadedModel]:
    """The model of each role, with a training engine where the graph trains it.

    Args:
        config: of the experiment.
        interfaces: by role.
        order: the calls.
        total_steps: of the whole run.
        job: the processes that load them together.
        layouts: by role, of which each process takes its part; None for a process alone.

    Raises:
        ReallmError: a checkpoint that cannot be loaded, or a device that is not there.
    """
    trained = trained_roles(order)
    loaded: dict[str, LoadedModel] = {}
    meshes: dict[Layout, Mesh] = {}
    for role, interface in interfaces.items():
        args = model_args(config, role)
        device = choose_device(args.device, job.gpu)
        mesh = None
        if layouts is not None:
            layout = layouts[role]
            mesh = meshes.setdefault(layout, Mesh.of(layout, timeout=config.parallel.timeout))
        model = ReaLModel.from_pretrained(
            args.path,
            device=device,
            seed=config.seed,
            mesh=mesh,
            zero=config.parallel.zero,
            sequence_parallel=config.parallel.sequence_parallel,
        )
        stored_dtype = model.dtype
        model.to(choose_dtype(args.dtype, device))
        engine = None
        if role in trained:
            model.gradient_checkpointing = args.gradient_checkpointing
            if args.compile:
                model.compile_blocks()
            engine = TrainEngine(
                model,
                config.optimizer,
                total_steps,
                config.max_tokens_per_microbatch,
                seed=config.seed,
                moe_aux_loss_coef=args.moe_aux_loss_coef,
            )
        loaded[role] = LoadedModel(Role(interface, model, engine), args, stored_dtype)
    return loaded


def _check_plan(config: TrainingConfig, plan: StepSampler, *, has_valid: bool) -> None:
    """Settings that ask for what cannot be."""
    warmup = config.optimizer.warmup_steps
    if warmup is not None and warmup >= plan.total_steps:
        raise ConfigError(
            f"optimizer.warmup_steps={warmup} must be less than all the steps there are, {plan.total_steps}"
        )
    if has_valid:
        return
    for key, value in {"eval_every": config.eval_every, "best_metric": config.best_metric}.items():
        if value is not None:
            raise ConfigError(f"{key}={value} needs validation data; give dataset.valid_path, or leave {key} out")


def _check_keys(sample: NamedArray, order: Sequence[ModelFunctionCall], dataset: str) -> None:
    known = set(sample.keys())
    for call in order:
        for key in call.inputs:
            if key not in known:
                raise DataError(
                    f"the call '{call.name}' needs '{key}', which dataset '{dataset}' does not give; "
                    f"it gives {', '.join(sample.keys())}: choose another dataset.name"
                )
        known |= set(call.outputs)


def described(dataset: Samples) -> str:
    """What a data set says of itself in one line, or how many samples it has."""
    report: Callable[[], str] | None = getattr(dataset, "report", None)
    return report() if callable(report) else counted(len(dataset), "sample")


def check_lengths(samples: Samples, survey: DatasetStats, models: Sequence[ModelArgs]) -> None:
    """Whether the models have positions for the samples that were looked at.

    Raises:
        DataError: a sample is longer than the positions that a model has learned; names it.
    """
    for args in models:
        longest = load_model_config(args.path).longest_sequence
        if longest is None or max(survey.lengths) <= longest:
            continue
        place = survey.lengths.index(max(survey.lengths))
        ids = samples[survey.rows[place]].metadata.get("ids")
        name = f"sample '{ids[0]}'" if ids else f"sample {survey.rows[place]}"
        raise DataError(
            f"{name} has {survey.lengths[place]:,} tokens, but {args.path} has learned {longest:,} positions; have the "
            f"dataset cut or drop what is longer (dataset.max_seqlen={longest})"
        )
