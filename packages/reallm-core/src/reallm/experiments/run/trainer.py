"""`Trainer`: builds the parts of a run, and trains, evaluates, logs and saves to the last step or a stop request."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from reallm.algorithms.context import CallContext
from reallm.algorithms.executor import GraphExecutor
from reallm.algorithms.graph import Graph
from reallm.algorithms.interface import optimizer_steps
from reallm.algorithms.interface_state import interface_states, load_interface_states
from reallm.algorithms.role import Role
from reallm.config.training import TrainingConfig, call_args_of
from reallm.data.batching import batches_in_order, gather
from reallm.data.datasets import Samples
from reallm.data.namedarray import NamedArray
from reallm.errors import DataError, NonFiniteError, counted
from reallm.experiments.checkpointing.checkpointer import Checkpointer
from reallm.experiments.checkpointing.open_run import OpenRun
from reallm.experiments.checkpointing.state_file import Generators
from reallm.experiments.checkpointing.train_state import TrainState
from reallm.experiments.preflight.memory import explained_shortage
from reallm.experiments.preflight.metrics import check_metric_name
from reallm.experiments.reports.graph_svg import write_graph_svg
from reallm.experiments.reports.write import report_failure, write_page
from reallm.experiments.run.best_metric import BestMetric
from reallm.experiments.run.callbacks import CallbackError, Callbacks, callback_offers
from reallm.experiments.run.eval_samples import EvalSamples, make_eval_samples
from reallm.experiments.run.loggers import Loggers, logger_specs
from reallm.experiments.run.messages import model_line, overview
from reallm.experiments.run.plan import Plan
from reallm.experiments.run.precomputed import Precomputation, keep
from reallm.experiments.run.progress import TrainingProgress, print_line
from reallm.experiments.run.question import question, with_implementation
from reallm.experiments.run.run_view import RunState
from reallm.experiments.run.setup import Data, load_roles
from reallm.experiments.runs.rollouts import drop_rollouts_after, write_rollouts
from reallm.experiments.runs.timeline import write_timeline
from reallm.launch.job import Job
from reallm.launch.signals import StopRequest
from reallm.loggers.jsonl import drop_after, finite
from reallm.parallel.layout import Layout
from reallm.parallel.mesh import Mesh
from reallm.specs import Algorithm


@dataclass(eq=False)
class Trainer:
    """Trains the models of an algorithm's graph.

    Each rank of a job has one, and all make the same calls. Decisions are the same on all ranks: they depend on
    metrics, which are equal, and on values such as the time or a signal only after a reduction over the ranks.
    """

    run: OpenRun
    config: TrainingConfig
    job: Job
    graph: Graph
    data: Data
    roles: Mapping[str, Role]
    interfaces: Mapping[str, Any]
    executor: GraphExecutor
    checkpointer: Checkpointer
    eval_samples: EvalSamples | None
    progress: TrainingProgress
    loggers: Loggers
    best: BestMetric
    callbacks: Callbacks

    question: str
    """Arguments of `reallm generate` that ask the first trained model something."""

    step: int = 0
    """Optimizer steps done."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The last value of each metric."""
    _saved_step: int = 0
    """The step of the newest save, finished or not."""
    _is_within_step: bool = False
    """Whether an error has ended a step after some role was trained, so that there is no state to save."""
    _evaluated_step: int | None = None
    _seconds_before: float = 0.0
    """Time spent on the run by earlier processes."""
    _start: float = field(default_factory=time.monotonic)
    _last_save: float = field(default_factory=time.monotonic)

    @classmethod
    def build(
        cls, config: TrainingConfig, algorithm: Algorithm, graph: Graph, run: OpenRun, job: Job, console: Console
    ) -> Trainer:
        """Load data, models and the state to resume from; check them; then start loggers and write the first files.

        Args:
            config: configuration of the run.
            algorithm: the algorithm, for its interfaces.
            graph: graph of the algorithm.
            run: the opened run. Nothing is written into its folder before everything is loaded and checked.
            job: the processes that train together.
            console: console on which progress is printed.

        Raises:
            ReallmError: something in the configuration, the data or a checkpoint is wrong; says what.
        """
        trained, folder, echo = graph.trained_roles, run.folder, partial(print_line, console)
        plan = Plan.make(config, algorithm, graph, run, job, echo)
        plan, precomputed = Precomputation(plan, graph, folder, job, console).run()
        config, data, point = plan.config, plan.data, plan.point
        roles = load_roles(
            config,
            graph,
            graph.roles_of_steps,
            data.tokenizer,
            job,
            plan.placement,
            horizons={name: data.sampler.total_steps * optimizer_steps(plan.interfaces[name]) for name in trained},
            tokenizer_changed=data.tokenizer_changed,
        )
        if point is not None:
            point.load_into({name: roles[name].engine for name in trained if roles[name].is_here})
            if point.state is not None:
                load_interface_states(plan.interfaces, point.state.interfaces)
        callbacks = Callbacks(
            callback_offers(config.callbacks),
            RunState(folder.path, run.settings, roles, data.sampler.total_steps, data.valid is not None, job),
        )

        # everything is loaded and checked: from here on the run writes files
        if job.is_rank0:
            folder.write_config(run.settings)
            folder.write_data(data.as_json())
            folder.graph.unlink(missing_ok=True)  # the page takes the markup as it is: never that of a resumed run
            if len(graph.calls) > 1:
                with report_failure(echo, "no drawing of the graph"):
                    write_graph_svg(folder.graph, run.algorithm or "the algorithm", graph, call_args_of(config))
            keep(precomputed, folder, echo)
            if point is not None:
                drop_after(folder.samples, point.step)
                drop_after(folder.timeline, point.step)
            drop_rollouts_after(folder.rollouts, 0 if point is None else point.step)
        for line in overview(
            plan, run, job, [model_line(name, role, config, plan.placement) for name, role in roles.items()]
        ):
            echo(line)
        specs = logger_specs(config.loggers) if job.is_rank0 else {}
        resume_step = None if point is None else point.step
        trainer = cls(
            run=run,
            config=config,
            job=job,
            graph=graph,
            data=data,
            roles=roles,
            interfaces=plan.interfaces,
            executor=GraphExecutor(
                graph, roles, plan.interfaces, plan.placement, getattr(config, "async_steps", 0), job
            ),
            checkpointer=Checkpointer(
                folder,
                keep_last=config.keep_last,
                # ranks that save together communicate, and so does the next step: they cannot do both at once
                in_background=config.async_save and job.is_alone and not callbacks.watch_saves,
                newest=None if point is None else point.checkpoint,
                best=None if point is None or point.state is None else point.state.best,
                mesh=None if job.is_alone else Mesh.of(Layout(dp=job.size), timeout=config.parallel.timeout),
            ),
            eval_samples=make_eval_samples(
                config, data, roles[trained[0]], plan.interfaces[trained[0]], folder.samples
            ),
            progress=TrainingProgress(console, data.sampler.total_steps),
            loggers=Loggers(specs, folder.path, run.settings, echo, resume_step=resume_step),
            best=BestMetric(config.tracked_metric, config.best_mode, config.stop_after_evals_without_gain),
            callbacks=callbacks,
            question=with_implementation(
                question(data.train, plan.interfaces[trained[0]], data.tokenizer), roles[trained[0]].args
            ),
        )
        for role in roles.values():
            if role.engine is not None:
                role.engine.before_optimizer_step = trainer.checkpointer.wait_until_read
        if point is not None and point.state is not None:
            trainer._restore(point.state)
        return trainer

    def _restore(self, state: TrainState) -> None:
        """Continue after the step of a saved state; models, engines and interfaces are loaded already."""
        self.step = self._saved_step = state.step
        self.metrics = dict(state.metrics)
        self.best.best, self.best.evals_without_gain = state.best, state.evals_without_gain
        self._evaluated_step = state.evaluated_step
        self._seconds_before = state.seconds
        self.executor.restore_versions(
            {name: engine.step - engine.skipped_steps for name, engine in state.engines.items()}
        )
        if not self.executor.queue.load_state(state.rollouts):
            self.progress.echo(
                f"async_steps={getattr(self.config, 'async_steps', 0)}: what was sampled ahead for "
                f"{counted(len({step for step, _ in state.rollouts}), 'step')} does not fit these settings, and is "
                "sampled again with the present weights"
            )
        self.callbacks.load_state(state.callbacks)
        state.generators.restore()

    @property
    def newest(self) -> Path | None:
        """The newest complete checkpoint."""
        return self.checkpointer.newest

    @property
    def seconds(self) -> float:
        """Time spent on the run so far, by this process and earlier ones."""
        return self._seconds_before + time.monotonic() - self._start

    @property
    def stop_reason(self) -> str | None:
        """Why the run ends before its last step, without having been interrupted; None if it does not."""
        if self.step >= self.data.sampler.total_steps:
            return None
        return self.best.stop_reason or self.callbacks.requests.stop

    @property
    def is_done(self) -> bool:
        """Whether the last step is done, and the evaluation after it; or the run has ended early for a reason."""
        return self._has_no_steps_left() and not self._evaluation_is_due()

    def _has_no_steps_left(self) -> bool:
        return self.step >= self.data.sampler.total_steps or self.stop_reason is not None

    def train(self, stop: StopRequest) -> None:
        """Train to the last step, or until asked to stop; then save.

        Raises:
            ReallmError: training cannot continue; the state is saved if possible.
        """
        try:
            self._call("on_train_begin")
            if self._evaluation_is_due():
                self._evaluate(stop)  # before the first step, or the evaluation that a stopped run had left out
                self._check_best_metric()
            while not self._has_no_steps_left() and not stop.is_set():
                self._train_step(self.step + 1)
                if self._evaluation_is_due():
                    self._evaluate(stop)
                if self._save_is_due():
                    self._save()
                elif self.checkpointer.has_failed:
                    self._finish_save()
                if self.callbacks.watch_saves and self.checkpointer.is_written:
                    self._finish_save()
        except (NonFiniteError, CallbackError):
            if not self._is_within_step:  # the parameters are those of the last complete step
                self._save()
            self.checkpointer.finish()
            raise
        self._save()
        with self.progress.doing("saving"):
            self._complete_save()
        self._call("on_train_end")

    def _train_step(self, step: int) -> None:
        later_steps = self.executor.queue.missing(step, self.data.sampler.total_steps)
        ahead = {later: self._samples(later) for later in later_steps}
        steps, states = self._engine_steps(), interface_states(self.interfaces)
        try:
            with explained_shortage(f"step {step}", self.roles, self.config):
                context = self._context(step)
                metrics = self.executor.train(self._samples(step), context, ahead)
        except NonFiniteError:
            self._is_within_step = self.job.any(self._engine_steps() != steps)
            load_interface_states(self.interfaces, states)
            raise
        self.step = step
        if self.job.is_rank0:
            with report_failure(self.progress.echo, "no rollouts"):
                write_rollouts(self.run.folder.rollouts, context.kept_rollouts)
        if self.config.timeline:
            spans = self.executor.spans()
            if self.job.is_rank0:
                with report_failure(self.progress.echo, "no timeline"):
                    write_timeline(self.run.folder.timeline, step, spans)
        self._log({**metrics, "epoch": self.data.sampler.epoch_after(step)})
        of_first_call = {name.partition("/")[2]: value for name, value in reversed(metrics.items())}
        self.progress.step(step, of_first_call)
        self._call("on_step_end")

    def _samples(self, step: int) -> NamedArray:
        """The samples that a step trains on."""
        return gather([self.data.train[row] for row in self.data.sampler.rows(step)])

    def _engine_steps(self) -> list[int]:
        """Optimizer steps of each role that this rank trains."""
        return [role.engine.step for role in self.roles.values() if role.engine is not None]

    def _context(self, step: int, *, training: bool = True) -> CallContext:
        return CallContext(
            self.data.tokenizer,
            self.config.seed,
            step,
            self.data.sampler.total_steps,
            self.config.max_tokens_per_microbatch,
            training,
            self.executor.weights_versions,
        )

    def _call(self, hook: str, *arguments: Any) -> None:
        self.callbacks.call(hook, self.step, self.metrics, *arguments)

    def _evaluation_is_due(self) -> bool:
        is_scheduled = self.step == 0 or self.data.sampler.is_due(self.step, self.config.eval_every)
        is_due = is_scheduled or self.callbacks.requests.evaluate
        return is_due and self.data.valid is not None and self._evaluated_step != self.step

    def _evaluate(self, stop: StopRequest) -> None:
        """Log metrics over the whole validation data; aborted without a result when asked to stop."""
        if stop.is_set():
            return
        with self.progress.doing("evaluating"):
            with explained_shortage("evaluation", self.roles, self.config):
                assert self.data.valid is not None
                metrics = self.executor.evaluate_samples(
                    self.data.valid, partial(self._batches, stop=stop), self._context(self.step, training=False)
                )
            if not stop.is_set() and self.eval_samples is not None:  # all ranks ask, not only those that generate
                with report_failure(self.progress.echo, "no samples"):
                    self.eval_samples.write(self.step)
        if stop.is_set():
            return
        self._evaluated_step = self.step
        self._log(metrics)
        self.progress.echo(f"step {self.step}: {_metrics_text(metrics)}")
        self.callbacks.requests.evaluate = False
        self._call("on_evaluate")
        checkpoint = self.run.folder.checkpoint(self.step).relative_to(self.run.folder.path)
        if self.best.update(metrics, self.step, str(checkpoint)):
            self._save()
        self.write_summary("running")
        self.job.broadcast_from_rank0(
            lambda: write_page(self.run.folder, self.progress.echo), self.config.parallel.timeout
        )

    def _batches(self, samples: Samples, stop: StopRequest) -> Iterator[NamedArray]:
        for batch in batches_in_order(samples, self.data.valid_batch_size):
            if stop.is_set():
                return
            yield batch

    def _check_best_metric(self) -> None:
        if self.metrics:
            check_metric_name(self.config, list(self.metrics))

    def _save_is_due(self) -> bool:
        minutes, every = self.config.save_every_minutes, self.config.save_every
        by_time = minutes is not None and self.job.any(
            self.job.is_rank0 and time.monotonic() - self._last_save >= 60 * minutes
        )
        by_request = self.callbacks.requests.save
        return by_time or by_request or (every is not None and self.data.sampler.is_due(self.step, every))

    def _save(self) -> None:
        """Start saving the state after the last step, unless it is saved already."""
        self.callbacks.requests.save = False
        if self.step == self._saved_step:
            return
        trained = {name: self.roles[name] for name in self.graph.trained_roles}
        with self.progress.doing("saving"):
            self._finish_save()
            exports = {
                name: role.model.export(dtype=role.checkpoint_dtype, tokenizer=role.tokenizer) if role.is_here else None
                for name, role in trained.items()
            }
            followers = {
                name: self.roles[name].model.export() if self.roles[name].is_here else None
                for name in self.graph.updated_roles
            }
            self.checkpointer.save(exports, self._state(trained), followers)
        self._saved_step, self._last_save = self.step, time.monotonic()
        self.write_summary("running")

    def _finish_save(self) -> None:
        """Wait for the save in progress. If it failed, training continues: the next save may succeed."""
        try:
            self._complete_save()
        except DataError as error:
            kept = f"{self.newest} is still there" if self.newest else "nothing is saved yet"
            self.progress.echo(f"saving failed: {error}. Training continues; {kept}")
            best, folder = self.best.best, self.run.folder.path
            # that of a later step is about to be saved
            if best is not None and best.step == self._saved_step and not (folder / best.checkpoint).is_dir():
                self.best.best = self.checkpointer.best

    def _complete_save(self) -> None:
        """Wait for the save in progress, and tell the callbacks of it."""
        if self.checkpointer.finish():
            self._call("on_save", self.newest)

    def _state(self, trained: Mapping[str, Role]) -> TrainState:
        engines = {}
        for name, role in trained.items():
            if role.engine is None:
                continue
            # float32 weights that are saved in float32 are in the checkpoint already, unrounded
            is_converted = role.checkpoint_dtype != role.model.dtype and role.model.config.lora is None
            is_rounded = role.engine.has_masters or is_converted
            engines[name] = role.engine.state(weights=is_rounded)
        return TrainState(
            self.step,
            self._evaluated_step,
            engines,
            dict(self.metrics),
            self.best.best,
            self.best.evals_without_gain,
            self.seconds,
            self.data.fingerprint,
            Generators.capture(),
            interface_states(self.interfaces),
            self.callbacks.state(),
            self.executor.queue.state(),
        )

    def _log(self, metrics: Mapping[str, float]) -> None:
        self.metrics |= metrics
        self.loggers.log(self.step, metrics)

    def write_summary(self, status: str, error: str | None = None) -> None:
        """Write `summary.json` on rank 0, with the status `running`, `done`, `stopped` or `failed`."""
        if not self.job.is_rank0:
            return
        with report_failure(self.progress.echo, "no summary"):
            self.run.folder.write_summary(self._summary(status, error))

    def _summary(self, status: str, error: str | None) -> dict[str, Any]:
        data, newest = self.data, self.newest
        return {
            "status": status,
            "error": error,
            "algorithm": self.run.algorithm,
            "started": self.run.started_at.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 3),
            "steps": self.step,
            "total_steps": data.sampler.total_steps,
            "epochs": data.sampler.epoch_after(self.step),
            "train_samples": len(data.train),
            "valid_samples": 0 if data.valid is None else len(data.valid),
            "parameters": {name: role.n_parameters for name, role in self.roles.items()},
            "checkpoint": None if newest is None else str(newest.relative_to(self.run.folder.path)),
            "best": None if self.best.best is None else dataclasses.asdict(self.best.best),
            "stop_reason": self.stop_reason,
            "question": self.question,
            "metrics": finite(self.metrics),
        }


def _metrics_text(metrics: Mapping[str, float]) -> str:
    """The metrics of an evaluation; of each source of a mixture only the loss."""
    shown = {name: value for name, value in metrics.items() if "_tokens" not in name}
    of_sources = [name for name in shown if name.rpartition("/")[0] in metrics and "/loss/" not in name]
    return "  ".join(f"{name} {value:,.4g}" for name, value in shown.items() if name not in of_sources)
