"""Specs of what plugins offer: datasets, loggers, callbacks, rewards, algorithms.

Imports no torch, since plugin discovery uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from reallm.references import TypeOrPath, resolve


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset class and the dataclass that configures it, each a class or a lazy `"module:Class"`.

    The dataset is a map-style `torch.utils.data.Dataset` whose constructor takes `util: DatasetUtility` and
    the fields of its configuration as keyword arguments, and whose `__getitem__` returns a `NamedArray` of
    one sample with its `seqlens`.
    """

    dataset: TypeOrPath
    config: TypeOrPath
    description: str = ""
    keys: tuple[str, ...] = ()
    """Keys of its samples. With them, an algorithm that needs other keys is refused before any data is read; without
    them, after the first sample."""
    example: tuple[str, ...] = ()
    """Settings, as `key=value`, that `reallm plugins check` tries it with where none are given."""

    def dataset_class(self) -> Any:
        """The dataset class, imported now."""
        return resolve(self.dataset)

    def config_class(self) -> Any:
        """The configuration dataclass, imported now."""
        return resolve(self.config)


class Logger(Protocol):
    """Receives the metrics of a run; constructed as `LoggerClass(run_dir, config)`.

    A logger that raises is reported in one line and switched off: it never ends a run.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Start logging.

        Args:
            run_dir: the folder of the run, which exists. A resumed run has the same folder as before.
            config: all settings of the run: nested mappings, lists and plain values, as in `config.yaml`.
        """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `metrics`, such as `train/loss` and `eval/loss`, after optimizer step `step`.

        Steps never decrease; one step may be logged several times, with other names: after training, after evaluating.
        Step 0 is before training.
        """

    def close(self) -> None:
        """Flush and release; called once, also after a failure."""


@runtime_checkable
class ResumableLogger(Logger, Protocol):
    """A logger with a method that is called when a run is resumed."""

    def resume(self, step: int) -> None:
        """Continue after optimizer step `step`: called once, before the first `log`, if the run is resumed.

        Drop the records of later steps: a killed run may have got further than its last save. The records of `step`
        itself stay. `step` is -1 if nothing was saved and the run starts from the beginning.
        """


@dataclass(frozen=True)
class LoggerSpec:
    """A logger class, or a lazy `"module:Class"`, and its requirements beyond its distribution's dependencies.

    Without the modules in `requires` the logger is off. `install` is the requirement that pip installs to provide them,
    such as `reallm-core[wandb]`; by default the names of the modules.
    """

    logger: TypeOrPath
    description: str = ""
    requires: tuple[str, ...] = ()
    install: str = ""

    def logger_class(self) -> Any:
        """The logger class, imported now."""
        return resolve(self.logger)

    @property
    def install_command(self) -> str:
        """The command that installs its requirements: `pip install "reallm-core[wandb]"`; empty if it has none."""
        return _install_command(self.requires, self.install)


def _install_command(requires: Sequence[str], install: str) -> str:
    if not requires:
        return ""
    wanted = [install] if install else requires
    quoted = (f'"{one}"' if "[" in one else one for one in wanted)  # some shells expand brackets
    return f"pip install {' '.join(quoted)}"


@dataclass(frozen=True)
class RewardSpec:
    """A reward function, or a lazy `"module:function"`; see `docs/rewards.md` for its signature.

    Without the modules in `requires` it is refused. `install` is the requirement that pip installs to provide them; by
    default the names of the modules.
    """

    function: Callable[..., Any] | str
    description: str = ""
    columns: tuple[str, ...] = ()
    """Columns of rows that it needs, besides those of its parameters that have no default."""
    requires: tuple[str, ...] = ()
    install: str = ""
    example: Callable[[], Sequence[Mapping[str, Any]]] | str | None = None
    """A function, or a lazy `"module:function"`, that returns rows that `reallm plugins check` tries it with, where it
    reads other columns than `answer`: mappings with `prompt`, `completion` and columns."""

    def reward_function(self) -> Any:
        """The function, imported now."""
        return resolve(self.function)

    @property
    def install_command(self) -> str:
        """The command that installs its requirements; empty if it has none."""
        return _install_command(self.requires, self.install)


class RunView(Protocol):
    """What a callback sees of a run, and what it may ask of it.

    Nothing of it can be set; `metrics` and `config` are copies.
    """

    @property
    def step(self) -> int:
        """Optimizer steps done; 0 before training."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""

    @property
    def metrics(self) -> Mapping[str, float]:
        """The last value of each metric, such as `train/loss` and `eval/loss`."""

    @property
    def config(self) -> Mapping[str, Any]:
        """All settings of the run: nested mappings, lists and plain values, as in `config.yaml`."""

    @property
    def run_dir(self) -> Path:
        """The folder of the run, which exists."""

    @property
    def rank(self) -> int:
        """Rank of this process among the `n_ranks` of the run. Rank 0 alone should print and write files."""

    @property
    def n_ranks(self) -> int:
        """Number of processes that train together."""

    def model(self, role: str = "model") -> Any:
        """The `ReaLModel` of a role. In a run of many processes it is this rank's part, and all ranks call it alike.

        Raises:
            ConfigError: the algorithm has no such role; names those that it has.
        """

    def request_stop(self, reason: str) -> None:
        """End the run as done, after what is due at this step; `reason` is shown to the user."""

    def request_save(self) -> None:
        """Save a checkpoint after this step."""

    def request_evaluation(self) -> None:
        """Evaluate after this step.

        Raises:
            ConfigError: the run has no validation data.
        """


class Callback(Protocol):
    """Code that runs at certain points of a training run; constructed without arguments.

    All methods are optional, and a callback need not derive from this class. In a run of many processes there is one
    on each rank, and all of them are called at the same points. What one rank asks for is done by all.

    A method that raises ends the run after a save, with one line that names the callback and its distribution.
    """

    def on_train_begin(self, run: RunView) -> None:
        """Called once, before the first step of this process: everything is loaded, and a resumed run restored."""

    def on_step_end(self, run: RunView) -> None:
        """Called after each optimizer step, before the evaluation and the save that may be due."""

    def on_evaluate(self, run: RunView) -> None:
        """Called after each evaluation, whose metrics are in `run.metrics`, before a save that follows from it."""

    def on_save(self, run: RunView, checkpoint: Path) -> None:
        """Called when a checkpoint is completely written. With this method, training waits for each save."""

    def on_train_end(self, run: RunView) -> None:
        """Called once, after the last save, also if the run was asked to stop; not after an error."""

    def state(self) -> Mapping[str, Any]:
        """State to continue from, as JSON types; saved with each checkpoint, for each rank."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` returned at the save from which the run is resumed; called before `on_train_begin`."""


@dataclass(frozen=True)
class CallbackSpec:
    """A class of callbacks, or a lazy `"module:Class"`; see `Callback` for its methods."""

    callback: TypeOrPath
    description: str = ""

    def callback_class(self) -> Any:
        """The class, imported now."""
        return resolve(self.callback)


STANDARD_IMPLEMENTATION = "reallm"
"""The implementation of networks that an installed family describes; all others are offered by plugins."""


@dataclass(frozen=True)
class ImplementationSpec:
    """Networks for checkpoints of any model type, which take the place of the installed family's where a run asks.

    Nothing chooses one by itself: users write `model.implementation=<name>`.
    """

    family: Callable[..., Any] | str
    """Function, or a lazy `"module:function"`, called as `family(raw, source)` with the content of a `config.json`,
    and the path that errors name; it returns the `HFFamily` that reads such checkpoints, the same object for the same
    content. Raises `CheckpointError` for a model that it cannot compute, with the reason."""
    description: str = ""

    def family_of(self, raw: Mapping[str, Any], source: str | Path) -> Any:
        """The `HFFamily` for the content of a `config.json`; the function is imported now."""
        return resolve(self.family)(raw, source)


CallKind = Literal["generate", "inference", "train_step", "reward"]
"""What a call does: `generate` and `inference` compute outputs with a model, `train_step` trains it, and `reward` calls
a function without a model."""


@dataclass(frozen=True)
class WeightUpdate:
    """What follows a train call every few steps: another role's weights move towards those of the trained role.

    The weights of `target` become `eta` times those of the trained role plus `1 - eta` times their own.
    """

    target: str
    every: int = 1
    """Optimizer steps between updates."""
    eta: float = 1.0


@dataclass(frozen=True)
class ModelFunctionCall:
    """A node of the dataflow graph: a call to the model of `role`, with the batch's keys that it reads and writes.

    Edges follow from the keys: a call that reads a key runs after the call that writes it. Calls to a model that is
    trained keep the order in which the graph lists them, since each of them needs a certain version of its weights.
    """

    name: str
    role: str
    """The model that is called; for a `reward`, the name of its interface, which has no model."""
    kind: CallKind
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    precompute: bool = False
    """Whether the outputs for a sample follow from the sample alone and from weights that never change: they are then
    computed once for all rows before training, and cached."""
    updates: tuple[WeightUpdate, ...] = ()
    """Weights of other roles that follow those of this one, for a `train_step`."""


GraphFunction = Callable[[Any], Sequence[ModelFunctionCall]]
"""Makes the graph of an algorithm for an instance of its configuration."""


@dataclass(frozen=True)
class Algorithm:
    """An algorithm: its configuration dataclass, its graph, and the interface class of each role.

    The graph is a tuple of calls, or a function from an instance of the configuration to such a tuple, or the
    `"module:function"` of one. An interface class is constructed with an instance of the configuration.
    """

    config: TypeOrPath
    graph: tuple[ModelFunctionCall, ...] | GraphFunction | str
    interfaces: Mapping[str, TypeOrPath]
    description: str = ""

    def config_class(self) -> Any:
        """The configuration dataclass, imported now."""
        return resolve(self.config)

    def interface_class(self, role: str) -> Any:
        """The interface class of a role, imported now."""
        return resolve(self.interfaces[role])

    def calls(self, config: Any) -> tuple[ModelFunctionCall, ...]:
        """The calls of its graph for a configuration."""
        graph = resolve(self.graph) if isinstance(self.graph, str) else self.graph
        return tuple(graph(config) if callable(graph) else graph)
