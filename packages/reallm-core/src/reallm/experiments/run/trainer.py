"""The steps of a run: train, evaluate, log, save, until the last step or until asked to stop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from reallm.algorithms.executor import GraphExecutor, LoadedModel
from reallm.config.training import TrainingConfig
from reallm.data.batching import gather
from reallm.data.namedarray import NamedArray
from reallm.errors import ConfigError, DataError, NonFiniteError, did_you_mean
from reallm.experiments.checkpointing.checkpointer import Checkpointer
from reallm.experiments.checkpointing.train_state import Best, Generators, TrainState
from reallm.experiments.preflight.memory import explained_shortage
from reallm.experiments.reports.write import report_failure, write_page
from reallm.experiments.run.eval_samples import EvalSamples
from reallm.experiments.run.loggers import Loggers
from reallm.experiments.run.progress import TrainingProgress
from reallm.experiments.run.setup import Data
from reallm.experiments.runs.folder import RunFolder
from reallm.launch.job import Job
from reallm.launch.signals import StopRequest
from reallm.loggers.jsonl import finite


@dataclass(frozen=True)
class TrainerParts:
    """What the loop works with; see the classes."""

    algorithm: str
    """Its name."""
    job: Job
    """The processes that all walk through the loop."""
    began: datetime
    """When the run was begun; local time."""
    config: TrainingConfig
    data: Data
    models: Mapping[str, LoadedModel]
    dataflow: GraphExecutor
    folder: RunFolder
    loggers: Loggers
    progress: TrainingProgress
    saver: Checkpointer
    examples: EvalSamples | None


class Trainer:
    """From step to step change the models and their engines, and the public attributes.

    In a job of many processes all decisions are the same on all ranks: metrics are, and what is not, such as the time
    or a signal, is agreed on.

    Args:
        parts: what it works with.
        resumed: where to go on; None to begin at the beginning.
    """

    def __init__(self, parts: TrainerParts, resumed: TrainState | None) -> None:
        self._parts = parts
        self._config, self._plan, self._folder = parts.config, parts.data.plan, parts.folder
        self.step = 0
        """Optimizer steps done."""
        self._saved_step = 0
        """The step of the newest save, begun or done."""
        self.metrics: dict[str, float] = {}
        self.best: Best | None = None
        self._evaluated_step: int | None = None
        self._began, self._seconds_before = time.monotonic(), 0.0
        self._last_save = time.monotonic()
        if resumed is not None:
            self.step = self._saved_step = resumed.step
            self.metrics, self.best = dict(resumed.metrics), resumed.best
            self._evaluated_step = resumed.evaluated_step
            self._seconds_before = resumed.seconds
        for loaded in parts.models.values():
            if loaded.role.engine is not None:
                loaded.role.engine.before_optimizer_step = parts.saver.wait_until_read

    @property
    def newest(self) -> Path | None:
        """The newest whole checkpoint."""
        return self._parts.saver.newest

    @property
    def seconds(self) -> float:
        """Spent on the run so far, in all its parts."""
        return self._seconds_before + time.monotonic() - self._began

    @property
    def is_done(self) -> bool:
        """Whether the last step is done, and the evaluation after it."""
        return self.step >= self._plan.total_steps and not self._evaluation_is_due()

    def run(self, stop: StopRequest) -> None:
        """Train to the last step, or until asked to stop; then save.

        Raises:
            ReallmError: training cannot go on; what can be saved is saved.
        """
        if self._evaluation_is_due():
            self._evaluate(stop)  # where training starts from, or what was not done any more when it was stopped
            self._check_best_metric()
        try:
            while self.step < self._plan.total_steps and not stop.is_set():
                self._train(self.step + 1)
                if self._evaluation_is_due():
                    self._evaluate(stop)
                if self._save_is_due():
                    self._save()
                elif self._parts.saver.has_failed:
                    self._finish_save()
        except NonFiniteError:
            self._save()  # the parameters are those of the step before
            self._parts.saver.finish()
            raise
        self._save()
        with self._parts.progress.doing("saving"):
            self._parts.saver.finish()

    def _train(self, step: int) -> None:
        rows = self._plan.rows(step)
        batch = gather([self._parts.data.train[row] for row in rows])
        with explained_shortage(f"step {step}", self._parts.models, self._config):
            metrics = self._parts.dataflow.train(batch)
        self.step = step
        self._log({**metrics, "epoch": self._plan.epoch_after(step)})
        self._parts.progress.step(step, {name.rpartition("/")[2]: value for name, value in metrics.items()})

    def _evaluation_is_due(self) -> bool:
        due = self.step == 0 or self._plan.is_due(self.step, self._config.eval_every)
        return due and self._parts.data.valid is not None and self._evaluated_step != self.step

    def _evaluate(self, stop: StopRequest) -> None:
        """Metrics over the whole validation data; given up without a result when asked to stop."""
        if stop.is_set():
            return
        progress = self._parts.progress
        with progress.doing("evaluating"):
            with explained_shortage("evaluation", self._parts.models, self._config):
                metrics = self._parts.dataflow.evaluate(self._valid_batches(stop))
            if self._parts.examples is not None and not stop.is_set():
                with report_failure(progress.say, "no samples"):
                    self._parts.examples.write(self.step)
        if stop.is_set():
            return
        self._evaluated_step = self.step
        self._log(metrics)
        progress.say(f"step {self.step}: {_listed(metrics)}")
        if self._improves(metrics):
            self._save()
        self.write_summary("running")
        self._parts.job.broadcast_from_rank0(
            lambda: write_page(self._folder, progress.say), self._config.parallel.timeout
        )

    def _valid_batches(self, stop: StopRequest) -> Iterator[NamedArray]:
        valid, size = self._parts.data.valid, self._parts.data.valid_batch_size
        assert valid is not None
        for start in range(0, len(valid), size):
            if stop.is_set():
                return
            yield gather([valid[row] for row in range(start, min(start + size, len(valid)))])

    def _check_best_metric(self) -> None:
        name = self._config.best_metric
        if name is not None and self.metrics and name not in self.metrics:
            raise ConfigError(
                f"best_metric={name} is not among the metrics of an evaluation{did_you_mean(name, self.metrics)}; "
                f"they are {', '.join(self.metrics)}"
            )

    def _improves(self, metrics: Mapping[str, float]) -> bool:
        """Whether these metrics are the best so far, after remembering them if so. Before training nothing counts."""
        name = self._config.best_metric
        value = metrics.get(name) if name is not None else None
        if name is None or value is None or value != value or not self.step:
            return False
        if self.best is not None and self.best.metric == name:
            gain = self.best.value - value if self._config.best_mode == "min" else value - self.best.value
            if not gain > 0:
                return False
        checkpoint = self._folder.checkpoint(self.step).relative_to(self._folder.path)
        self.best = Best(name, value, self.step, str(checkpoint))
        return True

    def _save_is_due(self) -> bool:
        minutes, every = self._config.save_every_minutes, self._config.save_every
        in_time = minutes is not None and self._parts.job.any(
            self._parts.job.is_rank0 and time.monotonic() - self._last_save >= 60 * minutes
        )
        return in_time or (every is not None and self._plan.is_due(self.step, every))

    def _save(self) -> None:
        """Begin to save what the last step has left, if that is not saved yet."""
        if self.step == self._saved_step:
            return
        trained = {name: loaded for name, loaded in self._parts.models.items() if loaded.role.engine is not None}
        with self._parts.progress.doing("saving"):
            self._finish_save()
            exports = {name: loaded.role.model.export(dtype=loaded.stored_dtype) for name, loaded in trained.items()}
            self._parts.saver.save(exports, self._state(trained))
        self._saved_step, self._last_save = self.step, time.monotonic()
        self.write_summary("running")

    def _finish_save(self) -> None:
        """End the save before this one. That it has failed is no reason to stop while there may still be a next one."""
        try:
            self._parts.saver.finish()
        except DataError as error:
            there = f"{self.newest} is still there" if self.newest else "nothing is saved yet"
            self._parts.progress.say(f"saving failed: {error}. Training goes on; {there}")
            if self.best is not None and not (self._folder.path / self.best.checkpoint).is_dir():
                self.best = None

    def _state(self, trained: Mapping[str, LoadedModel]) -> TrainState:
        engines = {}
        for name, loaded in trained.items():
            engine = loaded.role.engine
            assert engine is not None
            # float32 weights that are exported in float32 lie in the checkpoint already, whole
            rounded = engine.has_masters or loaded.stored_dtype != loaded.role.model.dtype
            engines[name] = engine.state(weights=rounded)
        return TrainState(
            self.step,
            self._evaluated_step,
            engines,
            dict(self.metrics),
            self.best,
            self.seconds,
            self._parts.data.fingerprint,
            Generators.capture(),
        )

    def _log(self, metrics: Mapping[str, float]) -> None:
        self.metrics |= metrics
        self._parts.loggers.log(self.step, metrics)

    def write_summary(self, status: str, error: str | None = None) -> None:
        """Write where the run is into `summary.json`: `running`, `done`, `stopped` or `failed`. Rank 0 does."""
        if not self._parts.job.is_rank0:
            return
        with report_failure(self._parts.progress.say, "no summary"):
            self._folder.write_summary(self._summary(status, error))

    def _summary(self, status: str, error: str | None) -> dict[str, Any]:
        data, newest = self._parts.data, self._parts.saver.newest
        return {
            "status": status,
            "error": error,
            "algorithm": self._parts.algorithm,
            "started": self._parts.began.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            "steps": self.step,
            "total_steps": self._plan.total_steps,
            "epochs": self._plan.epoch_after(self.step),
            "train_samples": len(data.train),
            "valid_samples": 0 if data.valid is None else len(data.valid),
            "parameters": {name: loaded.n_parameters for name, loaded in self._parts.models.items()},
            "checkpoint": None if newest is None else str(newest.relative_to(self._folder.path)),
            "best": None if self.best is None else dataclasses.asdict(self.best),
            "metrics": finite(self.metrics),
        }


def _listed(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {value:,.4g}" for name, value in metrics.items() if not name.endswith("_tokens"))
