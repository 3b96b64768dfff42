"""`AlgorithmSubject`, the algorithm under test with one of its configurations, and the runs that checks look at."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from reallm.algorithms.graph import Graph
from reallm.config.load import load
from reallm.config.training import TrainingConfig
from reallm.data.batching import gather
from reallm.data.datasets import Samples, make_dataset
from reallm.data.namedarray import NamedArray
from reallm.demo.tokenizer import byte_tokenizer
from reallm.errors import ConfigError
from reallm.experiments.run.runner import run
from reallm.launch.job import Job
from reallm.specs import Algorithm
from reallm_devkit.testing.algorithms.session import Session
from reallm_devkit.testing.scratch import ScratchFolder
from reallm_devkit.testing.source import location, reference_location, reference_module
from reallm_devkit.testing.spec_subject import SpecSubject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_SIZE = 4
STEPS = 4
MACHINE = ("tokens_per_s", "memory_gib")
"""Metrics that depend on the machine."""
Line = dict[str, float]
"""A line of a run's `metrics.jsonl`."""


@dataclass(frozen=True, kw_only=True)
class AlgorithmSubject(SpecSubject[Algorithm]):
    """An algorithm with one of its configurations.

    Attributes:
        title: its name, or that of its configuration class.
        arguments: the settings, as `key=value`, with paths of tiny checkpoints and of the rows.
        light_modules: modules that are imported to list the plugin, to read its configuration and to make its graph.
        folder: keeps the checkpoints, the rows and the runs.
    """

    title: str
    arguments: tuple[str, ...]
    folder: ScratchFolder

    @cached_property
    def config_class(self) -> Any:
        """The class of its configuration."""
        return self.spec.config_class()

    @cached_property
    def config(self) -> TrainingConfig:
        """Its configuration."""
        found: TrainingConfig = load(self.config_class, (), self.arguments).build()
        return found

    @cached_property
    def graph(self) -> Graph:
        """Its graph."""
        return Graph.of(self.spec, self.config)

    @cached_property
    def session(self) -> Session:
        """The algorithm with loaded models."""
        return Session(self.spec, self.config, self.graph, self._tokenizer)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return byte_tokenizer()

    @cached_property
    def samples(self) -> Samples:
        """The training data."""
        return make_dataset(self.config.datasets()["train"], seed=self.config.seed, tokenizer=self._tokenizer)

    @cached_property
    def inputs(self) -> NamedArray:
        """A batch of the dataset."""
        return gather([self.samples[row] for row in range(min(BATCH_SIZE, len(self.samples)))])

    @cached_property
    def generated(self) -> NamedArray:
        """The batch with the outputs of `generate` calls that read the dataset alone."""
        return self.session.with_outputs(self.inputs, kinds=("generate",))

    @cached_property
    def whole(self) -> NamedArray:
        """The batch with the outputs of all calls that do not train."""
        return self.session.with_outputs(self.generated)

    def at(self, role: str, method: str = "__init__") -> str:
        """The location of a method of a role's interface, or of its class."""
        return reference_location(self.spec.interfaces[role], method)

    @property
    def at_graph(self) -> str:
        """The location of the graph."""
        if isinstance(self.spec.graph, str):
            return reference_location(self.spec.graph)
        return location(self.spec.graph) if callable(self.spec.graph) else self.table

    @property
    def at_config(self) -> str:
        """The location of the configuration class."""
        return reference_location(self.spec.config)

    @property
    def module(self) -> str:
        """The module of the first interface."""
        return reference_module(next(iter(self.spec.interfaces.values())))

    def arguments_with(self, *changes: str) -> list[str]:
        """The settings as `key=value`, with others in place of some."""
        return [f"{key}={value}" for key, value in (by_key(self.arguments) | by_key(changes)).items()]

    def has_validation(self) -> bool:
        """Whether there are rows to evaluate on."""
        return "valid" in self.config.datasets()

    def run(self, name: str, algorithm: Algorithm | None = None, **changes: Any) -> Path:
        """Train, with changes to the settings; returns the folder of the run."""
        config = dataclasses.replace(self.config, name=name, **changes)
        quiet = Console(file=io.StringIO(), force_terminal=False)
        return run(config, algorithm or self.spec, name=self.title, console=quiet, job=Job()).run_dir

    @cached_property
    def first_run(self) -> Path:
        """The folder of a run with the settings as they are."""
        return self.run("first")


def by_key(arguments: Sequence[str]) -> dict[str, str]:
    """Settings `key=value` by key; of two for the same key, the last one.

    Raises:
        ConfigError: an argument is not a setting.
    """
    found = {}
    for argument in arguments:
        key, sign, value = argument.partition("=")
        if not sign:
            raise ConfigError(f"'{argument}' is not a setting; write key=value")
        found[key] = value
    return found


def read_lines(run_dir: Path) -> list[Line]:
    """All metrics of a run but those that depend on the machine."""
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [
        {name: value for name, value in json.loads(line).items() if not name.endswith(MACHINE)}
        for line in text.splitlines()
    ]


def train_lines(run_dir: Path) -> list[Line]:
    """The lines of a run that are not of evaluations."""
    return [line for line in read_lines(run_dir) if not any(name.startswith("eval/") for name in line)]
