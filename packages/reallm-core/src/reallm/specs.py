"""What a plugin says of a dataset. Imports no torch: discovery reads it."""

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
    """Receives the metrics of a run; made as `LoggerClass(run_dir, config)`.

    One that raises, wherever it does, is reported in one line and switched off: it never ends a run.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Start logging.

        Args:
            run_dir: the folder of the run, which exists. One that has been started before is continued in it.
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
    """A logger that has to know when a run continues. Those without this method simply go on."""

    def resume(self, step: int) -> None:
        """Go on after optimizer step `step`: called once, before the first `log`, if the run is a continued one.

        What was logged of later steps is to be forgotten, for a killed run may have got further than the state it
        saved. What was logged of `step` itself stays. It is -1 if nothing was saved: the run then begins anew.
        """


@dataclass(frozen=True)
class LoggerSpec:
    """A logger class, or a lazy `"module:Class"`, and what it needs beyond its own distribution's dependencies.

    `requires` are modules, without which the logger is off. `install` is what pip installs them by, such as
    `reallm-core[wandb]`; without it, distributions are taken to be called like the modules.
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
        """How to get what it needs: `pip install "reallm-core[wandb]"`; empty if it needs nothing."""
        if not self.requires:
            return ""
        wanted = [self.install] if self.install else self.requires
        quoted = (f'"{one}"' if "[" in one else one for one in wanted)  # some shells expand brackets
        return f"pip install {' '.join(quoted)}"


@dataclass(frozen=True)
class ModelFunctionCall:
    """One node of the dataflow graph: what `role`'s model does, from which keys of the batch to which.

    Edges follow from the keys: a call that reads a key runs after the call that writes it.
    """

    name: str
    role: str
    kind: Literal["generate", "inference", "train_step"]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Algorithm:
    """An algorithm: its configuration dataclass, its graph, and for each role the interface that does the work."""

    config: TypeOrPath
    graph: tuple[ModelFunctionCall, ...]
    interfaces: dict[str, TypeOrPath]
    description: str = ""

    def config_class(self) -> Any:
        """The experiment's configuration dataclass, imported now."""
        return resolve(self.config)

    def interface_class(self, role: str) -> Any:
        """The interface class of a role, imported now."""
        return resolve(self.interfaces[role])
