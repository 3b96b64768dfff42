"""`run`: trains what a configuration describes, and leaves a run folder behind."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from rich.console import Console

from reallm.algorithms.graph import execution_order
from reallm.algorithms.spec import Algorithm
from reallm.data.batching import gather
from reallm.data.namedarray import NamedArray
from reallm.experiments.config_load import describe
from reallm.experiments.dataflow import Dataflow
from reallm.experiments.interrupt import stop_requests
from reallm.experiments.logs import Loggers, logger_specs
from reallm.experiments.plots import read_curves, save_plot
from reallm.experiments.progress import TrainingProgress, duration
from reallm.experiments.run_folder import RunFolder, plain
from reallm.experiments.setup import Data, LoadedModel, TrainingConfig, counted, load_data, load_models, overview


@dataclass(frozen=True)
class RunResult:
    """What a run left behind."""

    run_dir: Path
    checkpoint: Path | None
    """The newest checkpoint; None if the run was stopped before its first step."""
    steps: int
    interrupted: bool
    metrics: Mapping[str, float]
    """The last value of each metric."""


def run(config: TrainingConfig, algorithm: Algorithm, *, console: Console | None = None) -> RunResult:
    """Train, evaluate, log and save as `config` says, walking the graph of `algorithm` once a step.

    The run folder holds `config.yaml`, `metrics.jsonl`, `tensorboard/`, `checkpoints/step-000100/` and a link `last` to
    the newest, `loss.png` and `summary.json`. Ctrl-C or SIGTERM ends the run after the step in progress, and saves.

    Args:
        config: of the algorithm's configuration class, such as `SFTConfig`.
        algorithm: graph and interfaces, as in `registry.get("algorithm", "sft")`.
        console: where progress goes; None is the standard output.

    Raises:
        ReallmError: in one line, what in the configuration, the data or the checkpoint is wrong, or that training
            went astray.
    """
    console = console or Console()

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    order = execution_order(algorithm.graph)
    specs = logger_specs(config.loggers)
    kind = type(config).__name__.removesuffix("Config").lower()
    folder = RunFolder.create(config.output_dir, config.name, default_prefix=kind)
    try:
        data = load_data(config, order)
        models = load_models(config, algorithm, order, data.plan.total_steps)
    except BaseException:
        folder.remove_if_empty()
        raise
    settings = plain(describe(config).tree())
    folder.write_config(settings)
    for line in overview(config, data, models, folder.path):
        say(line)

    dataflow = Dataflow(order, {name: loaded.role for name, loaded in models.items()})
    progress = TrainingProgress(console, data.plan.total_steps)
    loggers = Loggers(specs, folder.path, settings, say)
    loop = _Loop(config, data, models, dataflow, folder, loggers, progress)
    started = time.monotonic()
    try:
        with stop_requests() as stop, progress:
            loop.run(stop)
    finally:
        loggers.close()

    result = RunResult(folder.path, loop.saved, loop.step, loop.step < data.plan.total_steps, loop.metrics)
    folder.write_summary(_summary(result, data, models, time.monotonic() - started))
    _plot(folder, say)
    for line in _closing_lines(result, folder, time.monotonic() - started):
        say(line)
    return result


class _Loop:
    """The steps of a run. From step to step change the models, `step`, and what is remembered for the summary."""

    def __init__(
        self,
        config: TrainingConfig,
        data: Data,
        models: Mapping[str, LoadedModel],
        dataflow: Dataflow,
        folder: RunFolder,
        loggers: Loggers,
        progress: TrainingProgress,
    ) -> None:
        self._config, self._data, self._models = config, data, models
        self._dataflow, self._folder = dataflow, folder
        self._loggers, self._progress = loggers, progress
        self.step = 0
        """Optimizer steps done."""
        self.saved: Path | None = None
        self.metrics: dict[str, float] = {}

    def run(self, stop: Event) -> None:
        """Train to the last step, or until asked to stop; then save."""
        plan = self._data.plan
        self._evaluate(stop)  # where training starts from
        while self.step < plan.total_steps and not stop.is_set():
            self._train(self.step + 1)
            if plan.is_due(self.step, self._config.eval_every):
                self._evaluate(stop)
            if self._config.save_every and plan.is_due(self.step, self._config.save_every):
                self._save()
        if self.step:
            self._save()

    def _train(self, step: int) -> None:
        rows = self._data.plan.rows(step)
        metrics = self._dataflow.train(gather([self._data.train[row] for row in rows]))
        self.step = step
        self._log({**metrics, "epoch": self._data.plan.epoch_after(step)})
        self._progress.step(step, {name.rpartition("/")[2]: value for name, value in metrics.items()})

    def _evaluate(self, stop: Event) -> None:
        """Metrics over the whole validation data; given up without a result when asked to stop."""
        if self._data.valid is None or stop.is_set():
            return
        with self._progress.doing("evaluating"):
            metrics = self._dataflow.evaluate(self._valid_batches(stop))
        if stop.is_set():
            return
        self._log(metrics)
        self._progress.say(f"step {self.step}: {_listed(metrics)}")

    def _valid_batches(self, stop: Event) -> Iterator[NamedArray]:
        valid, size = self._data.valid, self._data.valid_batch_size
        assert valid is not None
        for start in range(0, len(valid), size):
            if stop.is_set():
                return
            yield gather([valid[row] for row in range(start, min(start + size, len(valid)))])

    def _save(self) -> None:
        path = self._folder.checkpoint(self.step)
        if self.saved == path:
            return
        trained = {name: loaded for name, loaded in self._models.items() if loaded.role.engine is not None}
        with self._progress.doing("saving"):
            for name, loaded in trained.items():
                target = path if len(trained) == 1 else path / name
                loaded.role.model.save_pretrained(target, dtype=loaded.stored_dtype)
        self._folder.point_last_at(path)
        self.saved = path

    def _log(self, metrics: Mapping[str, float]) -> None:
        self.metrics |= metrics
        self._loggers.log(self.step, metrics)


def _summary(result: RunResult, data: Data, models: Mapping[str, LoadedModel], seconds: float) -> dict[str, Any]:
    return {
        "steps": result.steps,
        "total_steps": data.plan.total_steps,
        "interrupted": result.interrupted,
        "epochs": data.plan.epoch_after(result.steps),
        "train_samples": len(data.train),
        "valid_samples": 0 if data.valid is None else len(data.valid),
        "parameters": {
            name: sum(parameter.numel() for parameter in loaded.role.model.parameters())
            for name, loaded in models.items()
        },
        "seconds": round(seconds, 3),
        "checkpoint": None if result.checkpoint is None else str(result.checkpoint.relative_to(result.run_dir)),
        "metrics": dict(result.metrics),
    }


def _plot(folder: RunFolder, say: Callable[[str], None]) -> None:
    try:
        curves = read_curves(folder.metrics)
        if any(name.endswith("/loss") for name in curves):
            save_plot(curves, folder.plot)
    except (OSError, ValueError) as error:  # a full disk must not hide where the checkpoint is
        say(f"no plot of the losses: {error}")


def _closing_lines(result: RunResult, folder: RunFolder, seconds: float) -> list[str]:
    what = "stopped" if result.interrupted else "done"
    lines = [f"{what} after {counted(result.steps, 'step')} in {duration(seconds)}"]
    if result.checkpoint is None:
        return [*lines, "nothing is saved: there was no step to save"]
    return [
        *lines,
        f"curves: {folder.plot}   numbers: {folder.metrics}",
        f"checkpoint: {result.checkpoint}",
        "with transformers:",
        "    from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'    tokenizer = AutoTokenizer.from_pretrained("{result.checkpoint}")',
        f'    model = AutoModelForCausalLM.from_pretrained("{result.checkpoint}")',
        f'or: reallm generate --model {result.checkpoint} "Once upon a time"',
    ]


def _listed(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:,.4g}" for name, value in metrics.items() if not name.endswith("_tokens"))
