"""`AlgorithmKit`, the conformance kit for algorithms."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from reallm.algorithms.graph import Graph
from reallm.config.args import ModelArgs
from reallm.config.load import load
from reallm.config.schema import dataset_fields
from reallm.errors import ConfigError
from reallm.options import is_missing
from reallm.plugins import registry
from reallm.specs import Algorithm
from reallm_devkit.testing.algorithms import calls, configuration, gradients, graph, layouts, runs
from reallm_devkit.testing.algorithms.subject import BATCH_SIZE, STEPS, AlgorithmSubject, by_key
from reallm_devkit.testing.algorithms.tiny import write_tiny_model
from reallm_devkit.testing.checks import Check
from reallm_devkit.testing.common_checks import description, light_import
from reallm_devkit.testing.plugin_kit import PluginKit
from reallm_devkit.testing.report import Report
from reallm_devkit.testing.scratch import ScratchFolder
from reallm_devkit.testing.source import reference_module

if TYPE_CHECKING:
    from reallm.plugins.loader import Offer

ALGORITHM_CHECKS: tuple[Check[Any], ...] = (
    description,
    light_import,
    configuration.configuration,
    configuration.odd_values,
    graph.graph,
    graph.interfaces,
    calls.outputs,
    calls.output_order,
    calls.one_by_one,
    gradients.training,
    gradients.weights,
    gradients.cut,
    gradients.sample_order,
    gradients.ids,
    runs.run,
    runs.metrics,
    runs.same_twice,
    runs.evaluation,
    runs.state,
    runs.resume,
    layouts.layouts,
)
"""The checks of an algorithm."""

DEFAULT = "default"
"""The case of the configuration's defaults."""


class AlgorithmKit(PluginKit[AlgorithmSubject]):
    """The checks of an algorithm. As a test suite:

    class TestMyAlgorithm(AlgorithmKit):
        algorithm = "my-algorithm"
        rows = [{"prompt": "Spell no:", "answer": " n o"}, ...]
        settings = {"with-beta": ["beta=0.1"]}

    Each role is given a tiny model with random weights; the tests train it for a few steps.
    """

    kind = "algorithm"
    checks: ClassVar[tuple[Check[Any], ...]] = ALGORITHM_CHECKS
    has_cases: ClassVar[bool] = True

    algorithm: str | Algorithm = ""
    """The name it is installed under, or the `Algorithm` of one that is not installed yet."""

    rows: Sequence[Mapping[str, Any]] = ()
    """A few rows of its dataset, to train and to evaluate on; better ones of different lengths, and at least eight."""

    arguments: Sequence[str] = ()
    """Settings of every case, as on the command line: `["n=2", "dataset.name=prompt"]`."""

    settings: Mapping[str, Sequence[str]] = {}
    """Name of a case -> its settings, beside the case `default`: `{"no-reference": ["beta=0"]}`."""

    @classmethod
    def from_command(cls, offer: Offer, arguments: Sequence[str], checkpoint: Path | None) -> Self:
        """Make the kit for `reallm plugins check my-algorithm dataset.train_path=rows.jsonl beta=0.1`."""
        if checkpoint is not None:
            raise ConfigError("--checkpoint is for model families; an algorithm is checked with tiny models")
        return cls.of(algorithm=offer.name, arguments=tuple(arguments))

    def title(self) -> str:
        """The name of the algorithm, or of its configuration class."""
        if self._is_installed:
            return str(self._given)
        return str(getattr(self._reference(), "__qualname__", self._reference()))

    def _reference(self) -> Any:
        return self._spec().config

    def module(self, subject: AlgorithmSubject) -> str:
        """The module of the first interface, whose package has the algorithm's code."""
        return subject.module

    def cases(self) -> Sequence[str]:
        """Names of the settings."""
        return (DEFAULT, *self.settings)

    def subject(self, case: str) -> AlgorithmSubject:
        """Make the subject: write tiny models and the rows."""
        spec: Algorithm = self._spec()
        folder = ScratchFolder()
        given = [*self.arguments, *self.settings.get(case, ())]
        arguments = self._arguments(spec, folder.path, by_key(given))
        loaded = load(spec.config_class(), (), arguments)  # an input that is wrong is not the algorithm's fault
        if any(is_missing(value) for value in loaded.values.values()):
            loaded.build()  # raises, naming what is missing
        unused = {f"{role}.path" for role in _unused_roles(spec, arguments)} - by_key(given).keys()
        return AlgorithmSubject(
            title=self.title(),
            spec=spec,
            arguments=tuple(each for each in arguments if each.partition("=")[0] not in unused),
            table=self._table() if self._is_installed else "the Algorithm",
            light_modules=self._light_modules(),
            folder=folder,
        )

    def _arguments(self, spec: Algorithm, folder: Path, given: Mapping[str, str]) -> list[str]:
        """The settings of a case: those given, and others that make a small run of them."""
        cls = spec.config_class()
        settings = {
            "max_steps": str(STEPS),
            "epochs": "100",
            "eval_every": "2",
            "eval_generations": "0",
            "save_every": "2",
            "async_save": "false",
            "loggers": "[jsonl]",
            "optimizer.lr": "0.001",
            "output_dir": str(folder / "runs"),
            **_model_settings(cls, folder),
        }
        dataset = given.get("dataset.name", dataset_fields(cls).get("dataset", ""))
        keys = {item.name for item in dataclasses.fields(registry.get("dataset", dataset).config_class())}
        settings |= {f"dataset.{key}": str(BATCH_SIZE) for key in ("train_bs_n_seqs", "valid_bs_n_seqs") if key in keys}
        if self.rows:
            rows = folder / "rows.jsonl"
            rows.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
            settings["dataset.train_path"] = str(rows)
        path = given.get("dataset.train_path", settings.get("dataset.train_path"))
        held_out = {"dataset.valid_path", "dataset.valid_fraction"} & given.keys()
        if path is not None and "valid_path" in keys and not held_out:
            settings["dataset.valid_path"] = path
        return [f"{key}={value}" for key, value in {**settings, **given}.items()]

    def _table(self) -> str:
        return super()._table() if self._is_installed else "the Algorithm"

    def _light_modules(self) -> tuple[str, ...]:
        spec: Algorithm = self._spec()
        modules = [*super()._light_modules(), reference_module(spec.config)]
        if isinstance(spec.graph, str):
            modules.append(reference_module(spec.graph))
        elif callable(spec.graph):
            modules.append(spec.graph.__module__)
        return tuple(dict.fromkeys(name for name in modules if name != "__main__"))


def check_algorithm(
    algorithm: str | Algorithm,
    *,
    rows: Sequence[Mapping[str, Any]] = (),
    arguments: Sequence[str] = (),
    settings: Mapping[str, Sequence[str]] | None = None,
    skip: Mapping[str, str] | None = None,
) -> Report:
    """Check an algorithm; the arguments are the attributes of `AlgorithmKit`: `assert check_algorithm(...).passed`.

    Raises:
        ReallmError: no plugin offers it, or an argument is wrong.
    """
    kit = AlgorithmKit.of(algorithm=algorithm, rows=rows, arguments=arguments, settings=settings or {}, skip=skip or {})
    return kit.run()


def _unused_roles(spec: Algorithm, arguments: Sequence[str]) -> list[str]:
    """The roles that no call uses with these settings and whose checkpoint is by default that of another role."""
    try:
        config = load(spec.config_class(), (), arguments).build()
        used = Graph.of(spec, config).roles
    except Exception:  # of the plugin; the checks of its configuration and its graph report it
        return []
    models = {item.name: item.default_factory for item in dataclasses.fields(config)}
    return [
        role
        for role, factory in models.items()
        if role not in used and factory is not dataclasses.MISSING and getattr(factory(), "path", "") is None
    ]


def _model_settings(config_class: Any, folder: Path) -> dict[str, str]:
    """Paths of tiny models for the roles that need one, each with weights of its own."""
    settings = {}
    for number, item in enumerate(dataclasses.fields(config_class)):
        factory = item.default_factory
        default = None if factory is dataclasses.MISSING else factory()
        if not isinstance(default, ModelArgs):
            continue
        settings[f"{item.name}.device"] = "cpu"
        if is_missing(default.path) or default.path is None:
            model = write_tiny_model(folder / "models" / item.name, seed=number, is_critic=default.is_critic)
            settings[f"{item.name}.path"] = str(model)
    return settings
