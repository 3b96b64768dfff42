"""Specs of what plugins offer: datasets, loggers, algorithms. Imports no torch, since plugin discovery uses it."""

from __future__ import annotations

from collections.abc import Mapping
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
        if not self.requires:
            return ""
        wanted = [self.install] if self.install else self.requires
        quoted = (f'"{one}"' if "[" in one else one for one in wanted)  # some shells expand brackets
        return f"pip install {' '.join(quoted)}"


@dataclass(frozen=True)
class ModelFunctionCall:
    """A node of the dataflow graph: a call to the model of `role`, with the batch's keys that it reads and writes.

    Edges follow from the keys: a call that reads a key runs after the call that writes it.
    """

    name: str
    role: str
    kind: Literal["generate", "inference", "train_step"]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Algorithm:
    """An algorithm: its configuration dataclass, its graph, and the interface class of each role."""

    config: TypeOrPath
    graph: tuple[ModelFunctionCall, ...]
    interfaces: dict[str, TypeOrPath]
    description: str = ""

    def config_class(self) -> Any:
        """The configuration dataclass, imported now."""
        return resolve(self.config)

    def interface_class(self, role: str) -> Any:
        """The interface class of a role, imported now."""
        return resolve(self.interfaces[role])
