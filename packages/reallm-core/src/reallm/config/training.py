"""Configuration shared by all training algorithms: data, steps, evaluation, saving. Imports no torch."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from reallm.arguments import as_path
from reallm.config.allocation import MANUAL, layout_of
from reallm.config.args import CallArgs, ModelArgs, dataset_option
from reallm.config.dataset import batch_size, check_splits, splits
from reallm.config.group import ConfigGroup
from reallm.config.lr_schedule import check_warmup
from reallm.config.optimizer import OptimizerConfig, check_unsharded
from reallm.config.parallel import ParallelArgs
from reallm.config.plan import PlanArgs
from reallm.config.schema import check_values
from reallm.errors import ConfigError, kind_of
from reallm.options import is_missing, option
from reallm.parallel.layout import Layout

if TYPE_CHECKING:
    from reallm.data.datasets import Dataset
    from reallm.data.mixture import Mixture

DEFAULT_OUTPUT_DIR = "runs"
AUTO = "auto"
"""The value of `resume` that continues a run if there is one to continue."""
DEFAULT_BEST_METRIC = "eval/loss"
"""The metric by which a run is stopped early unless `best_metric` names another one."""


@dataclass(frozen=True)
class TrainingConfig(ConfigGroup):
    """Base class of the configurations of algorithms.

    The configuration class of an algorithm derives from it and adds, for each role of its graph, a field of that name
    with its `ModelArgs`, and for each call that users may place, a field of the call's name with its `CallArgs`. An
    algorithm whose default dataset is not `prompt_answer` declares `dataset` again.

    Raises:
        ConfigError: a required value is missing, or a value is not allowed; names the key.
    """

    dataset: Any = dataset_option("prompt_answer", "what to train on")
    optimizer: OptimizerConfig = field(
        default_factory=OptimizerConfig, metadata={"help": "the optimizer and its learning-rate schedule"}
    )
    parallel: ParallelArgs = field(
        default_factory=ParallelArgs, metadata={"help": "how training is split over processes, one for each GPU"}
    )

    allocation: str = option(
        MANUAL,
        "where calls are computed that have no layout of their own: manual, as parallel.* says; search, the fastest "
        "plan that is found; heuristic, all on all processes, each model split no further than memory demands; or "
        "one layout for all, such as d2p2m1 (data, pipeline and tensor parallelism)",
    )
    plan: PlanArgs = field(default_factory=PlanArgs, metadata={"help": "what allocation=search plans for"})

    epochs: int = option(1, "passes over the training data")
    max_steps: int | None = option(
        None, "optimizer steps after which training stops, even within an epoch; null: no limit"
    )
    max_tokens_per_microbatch: int = option(
        8192, "tokens computed at once; lower it when memory runs out: results stay the same"
    )
    eval_every: int | None = option(None, "optimizer steps between evaluations; null: after each epoch and at the end")
    eval_generations: int = option(
        3, "validation samples whose answers are generated at each evaluation, for people to read; 0: none"
    )
    eval_max_new_tokens: int = option(64, "longest of these answers, in tokens")
    save_every: int | None = option(None, "optimizer steps between saves; null: save_every_minutes alone counts")
    save_every_minutes: float | None = option(
        30.0, "minutes between saves; null: save_every alone counts. There is always a save at the end"
    )
    keep_last: int | None = option(
        2, "newest checkpoints that are kept, the best one aside; null: all. Only the newest can be resumed from"
    )
    async_save: bool = option(
        True,
        "save while the next step computes its gradients; false: training waits for each save. "
        "Several processes that train together always wait",
    )
    best_metric: str | None = option(
        None, "metric whose best checkpoint is kept as checkpoints/best, such as eval/loss; saved at each evaluation"
    )
    best_mode: Literal["min", "max"] = option("min", "whether the lowest or the highest best_metric is the best")
    stop_after_evals_without_gain: int | None = option(
        None,
        "evaluations in a row without improvement of best_metric (default: eval/loss) after which the run ends",
    )
    loggers: list[str] = option(["jsonl", "tensorboard"], "where metrics go; `reallm plugins` lists what is installed")
    callbacks: list[str] = option(
        [], "code of plugins that runs during training; `reallm plugins` lists what is installed"
    )
    timeline: bool = option(
        False, "write what each process did in each step, and when, into timeline.jsonl of the run folder"
    )
    push_to_hub: str | None = option(
        None,
        "repository on the Hugging Face hub, owner/name, that the best checkpoint, or else the last, is uploaded to "
        "when the run is done; created, as private, if there is none",
    )
    output_dir: str = option(DEFAULT_OUTPUT_DIR, "folder that holds the run folders")
    name: str | None = option(None, "name of the run folder in output_dir; null: <algorithm>-<date and time>")
    resume: str | None = option(
        None,
        "run to continue with its own settings (key=value changes them), by its name in output_dir or its path; "
        "auto: the unfinished run of this name or of these settings, or else a new one",
    )
    seed: int = option(1, "seed of all random choices; the same seed gives the same run")
    deterministic: bool = option(
        True, "use only kernels that give the same numbers in every run; false can be faster on a GPU"
    )

    def __post_init__(self) -> None:
        if not is_missing(self.dataset) and not dataclasses.is_dataclass(self.dataset):
            raise ConfigError(
                f"dataset must be the configuration of a dataset, not {kind_of(self.dataset)}; "
                "write PromptAnswerDatasetConfig(train_path=...)"
            )
        check_values(self)
        layout_of(self.allocation)
        _check_dataset(self.dataset)
        self._check_location()
        at_least_one = {
            "epochs": self.epochs,
            "max_steps": self.max_steps,
            "max_tokens_per_microbatch": self.max_tokens_per_microbatch,
            "eval_every": self.eval_every,
            "eval_max_new_tokens": self.eval_max_new_tokens,
            "save_every": self.save_every,
            "keep_last": self.keep_last,
            "stop_after_evals_without_gain": self.stop_after_evals_without_gain,
            "dataset.train_bs_n_seqs": batch_size(self.dataset, "train"),
            "dataset.valid_bs_n_seqs": batch_size(self.dataset, "valid"),
        }
        for key, value in at_least_one.items():
            if value is not None and value < 1:
                raise ConfigError(f"{key}={value} must be at least 1")
        for key, count in {"seed": self.seed, "eval_generations": self.eval_generations}.items():
            if count < 0:
                raise ConfigError(f"{key}={count} must be 0 or more")
        if self.save_every_minutes is not None and not self.save_every_minutes > 0:
            raise ConfigError(f"save_every_minutes={self.save_every_minutes} must be more than 0; null turns it off")
        if self.max_steps is not None:
            check_warmup(self.optimizer, self.max_steps, f"max_steps={self.max_steps}")
        if all(args.layout is None for args in call_args_of(self).values()):  # otherwise it depends on the graph
            check_unsharded(self.optimizer, self.parallel.smallest_layout)

    def _check_location(self) -> None:
        for key, value in {"name": self.name, "output_dir": self.output_dir, "resume": self.resume}.items():
            if value is not None and not value.strip():
                raise ConfigError(f"{key} is empty; give it a value, or leave it out")
        if self.name is not None and self.resume in (None, AUTO):  # a resumed run keeps its name
            check_name(self.name)
        object.__setattr__(self, "output_dir", str(as_path(self.output_dir)))

    @property
    def n_processes(self) -> int:
        """Number of processes to start: as many as `parallel.*`, `allocation` or the layout of a call needs."""
        layouts = [Layout.parse(args.layout) for args in call_args_of(self).values() if args.layout is not None]
        for_all = layout_of(self.allocation)
        layouts += [] if for_all is None else [for_all]
        return max([self.parallel.n_processes, *(max(layout.ranks) + 1 for layout in layouts)])

    @property
    def tracked_metric(self) -> str | None:
        """The metric whose best checkpoint is kept: `best_metric`, or `eval/loss` if it may stop the run."""
        if self.best_metric is None and self.stop_after_evals_without_gain is not None:
            return DEFAULT_BEST_METRIC
        return self.best_metric

    def datasets(self) -> dict[str, Dataset | Mixture]:
        """The training data as `"train"` and, if there are rows to evaluate on, these as `"valid"`."""
        return splits(self.dataset)


def check_name(name: str) -> None:
    """Raise ConfigError unless `name` can be the name of a run folder: one part of a path, and not hidden."""
    if "/" in name or os.sep in name:
        parent, slash, leaf = name.rpartition("/")
        remedy = (
            f"put the folder into output_dir: output_dir={parent or slash} name={leaf}"
            if leaf.strip(".")
            else "leave / out"
        )
        raise ConfigError(f"name={name}: a name is not a path; {remedy}")
    if name.startswith("."):
        raise ConfigError(f"name={name}: a name must not begin with a dot, which would hide the run folder")
    if not name.isprintable():
        raise ConfigError(f"name={name!r}: a name must not contain control characters")


def _check_dataset(config: Any) -> None:
    try:
        check_splits(config)
    except ConfigError as error:
        raise ConfigError(f"dataset.{error}") from error


def role_optimizer(config: TrainingConfig, role: str) -> OptimizerConfig:
    """The optimizer of a trained role: `optimizer.*`, with the settings of `<role>.optimizer` in place of its own.

    Raises:
        ConfigError: there is no such setting, or its value is not allowed.
    """
    changes = model_args(config, role).optimizer
    try:
        return dataclasses.replace(config.optimizer, **changes) if changes else config.optimizer
    except ConfigError as error:
        raise ConfigError(f"{role}.optimizer.{error}") from error


def max_tokens_per_microbatch(config: TrainingConfig, role: str, call: str | None = None) -> int:
    """The tokens that the model of a role computes at once, in a call that may have a limit of its own."""
    own = call_args_of(config).get(call or "", CallArgs()).max_tokens_per_microbatch
    return own or model_args(config, role).max_tokens_per_microbatch or config.max_tokens_per_microbatch


def call_fields(config_class: type) -> list[str]:
    """The fields of a configuration class that say where a call is computed: the names of the calls."""
    return [item.name for item in dataclasses.fields(config_class) if item.default_factory is CallArgs]


def call_args_of(config: Any) -> dict[str, CallArgs]:
    """The `CallArgs` of the calls that have a field in a configuration, by the name of the call."""
    values = {item.name: getattr(config, item.name) for item in dataclasses.fields(config)}
    return {name: value for name, value in values.items() if isinstance(value, CallArgs)}


def model_args(config: TrainingConfig, role: str) -> ModelArgs:
    """The `ModelArgs` of a role.

    Raises:
        ConfigError: the configuration class has no such field.
    """
    args = getattr(config, role, None)
    if not isinstance(args, ModelArgs):
        raise ConfigError(f"{type(config).__name__} has no field '{role}' with the ModelArgs of the role '{role}'")
    return args
