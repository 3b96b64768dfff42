"""From a configuration to the parts of a run: tokenizer, datasets, models, and the plan of its steps."""

# ruff: noqa: D102 - a configuration's fields are explained where they are declared

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from reallm.algorithms.spec import Algorithm, ModelFunctionCall
from reallm.data.datasets import Samples, make_dataset
from reallm.data.namedarray import NamedArray
from reallm.engine.optimizer_config import OptimizerConfig
from reallm.engine.real_model import ReaLModel
from reallm.engine.train import TrainEngine
from reallm.errors import ConfigError, DataError
from reallm.experiments.batches import BatchPlan
from reallm.experiments.config import ModelArgs
from reallm.experiments.config_dataset import batch_size
from reallm.experiments.dataflow import Role
from reallm.hf.config_io import resolve_path
from reallm.hf.transformers_io import load_tokenizer

if TYPE_CHECKING:
    from reallm.data.datasets import Dataset


class TrainingConfig(Protocol):
    """What the runner reads of an experiment's configuration; `SFTConfig` says what each field means.

    For each role of the algorithm there is also a field of that name with its `ModelArgs`.
    """

    @property
    def dataset(self) -> Any: ...
    @property
    def optimizer(self) -> OptimizerConfig: ...
    @property
    def epochs(self) -> int: ...
    @property
    def max_steps(self) -> int | None: ...
    @property
    def max_tokens_per_microbatch(self) -> int: ...
    @property
    def eval_every(self) -> int | None: ...
    @property
    def save_every(self) -> int | None: ...
    @property
    def loggers(self) -> list[str]: ...
    @property
    def output_dir(self) -> str: ...
    @property
    def name(self) -> str | None: ...
    @property
    def seed(self) -> int: ...

    def datasets(self) -> dict[str, Dataset]:
        """The data sets by split: `train`, and `valid` if there is one."""


@dataclass(frozen=True)
class Data:
    """The tokenized data sets and the plan of steps over the first."""

    train: Samples
    valid: Samples | None
    valid_batch_size: int
    plan: BatchPlan


@dataclass(frozen=True)
class LoadedModel:
    """A role with its model; `stored_dtype` is that of its checkpoint, in which it is saved."""

    role: Role
    args: ModelArgs
    stored_dtype: torch.dtype


def load_data(config: TrainingConfig, order: Sequence[ModelFunctionCall]) -> Data:
    """Tokenize the data sets with the tokenizer of the model that is trained first.

    Raises:
        ReallmError: a tokenizer or a data set that cannot be read, is empty, or lacks keys the algorithm needs.
    """
    trained = next(call.role for call in order if call.kind == "train_step")
    tokenizer = load_tokenizer(resolve_path(_model_args(config, trained).path))
    splits = config.datasets()
    built = {split: make_dataset(dataset, seed=config.seed, tokenizer=tokenizer) for split, dataset in splits.items()}
    train, valid = built["train"], built.get("valid")
    if not len(train):
        raise DataError(f"dataset '{splits['train'].name}' gives no samples to train on ({_described(train)})")
    if valid is not None and not len(valid):
        valid = None
    _check_keys(train[0], order, splits["train"].name)
    plan = BatchPlan(len(train), batch_size(config.dataset, "train"), config.epochs, config.max_steps, config.seed)
    return Data(train, valid, batch_size(config.dataset, "valid"), plan)


def load_models(
    config: TrainingConfig, algorithm: Algorithm, order: Sequence[ModelFunctionCall], total_steps: int
) -> dict[str, LoadedModel]:
    """The model of each role, with a training engine where the graph trains it.

    Raises:
        ReallmError: a checkpoint that cannot be loaded, or a device that is not there.
    """
    trained = {call.role for call in order if call.kind == "train_step"}
    loaded: dict[str, LoadedModel] = {}
    for role in dict.fromkeys(call.role for call in order):
        args = _model_args(config, role)
        device = choose_device(args.device)
        model = ReaLModel.from_pretrained(args.path, device=device, seed=config.seed)
        stored_dtype = next(model.parameters()).dtype
        model.to(choose_dtype(args.dtype, device))
        model.gradient_checkpointing = args.gradient_checkpointing
        engine = None
        if role in trained:
            engine = TrainEngine(
                model, config.optimizer, total_steps, config.max_tokens_per_microbatch, seed=config.seed
            )
        loaded[role] = LoadedModel(Role(algorithm.interface_class(role)(), model, engine), args, stored_dtype)
    return loaded


def overview(config: TrainingConfig, data: Data, models: Mapping[str, LoadedModel], folder: object) -> list[str]:
    """What is going to happen, one line for each subject."""
    lines = []
    for name, loaded in models.items():
        parameters = list(loaded.role.model.parameters())
        count = sum(parameter.numel() for parameter in parameters)
        where = f"{_dtype_name(parameters[0].dtype)} on {parameters[0].device}"
        lines.append(f"{name}: {loaded.args.path}, {count:,} parameters, {where}")
    lines.append(f"train: {_described(data.train)}")
    if data.valid is not None:
        lines.append(f"valid: {_described(data.valid)}")
    plan, optimizer = data.plan, config.optimizer
    lines.append(
        f"plan: {counted(plan.total_steps, 'step')} of {counted(plan.batch_size, 'sample')}, "
        f"{plan.steps_per_epoch:,} an epoch; "
        f"lr {optimizer.lr:g} {optimizer.schedule}, at most {config.max_tokens_per_microbatch:,} tokens at once"
    )
    lines.append(f"run folder: {folder}")
    return lines


def counted(n: int, noun: str) -> str:
    """`"1 step"`, `"2,000 steps"`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def choose_device(name: str) -> torch.device:
    """The device that `model.device` names; `auto` is a GPU if there is one.

    Raises:
        ConfigError: `cuda` is asked for where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("model.device=cuda, but torch sees no GPU here; use model.device=cpu or auto")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype that `model.dtype` names; `auto` is bfloat16 on a GPU that has it, else float32."""
    if name == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bfloat16 else torch.float32
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _model_args(config: TrainingConfig, role: str) -> ModelArgs:
    args = getattr(config, role, None)
    if not isinstance(args, ModelArgs):
        raise ConfigError(f"{type(config).__name__} has no field '{role}' with the ModelArgs of the role '{role}'")
    return args


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


def _described(dataset: Samples) -> str:
    report: Callable[[], str] | None = getattr(dataset, "report", None)
    return report() if callable(report) else counted(len(dataset), "sample")


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
