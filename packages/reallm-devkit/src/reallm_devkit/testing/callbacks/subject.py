"""`CallbackSubject`, the callback under test, and the run that it is called with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from reallm.specs import CallbackSpec
from reallm_devkit.testing.checks import Skipped
from reallm_devkit.testing.run_config import run_config
from reallm_devkit.testing.source import reference_location
from reallm_devkit.testing.spec_subject import SpecSubject

N_STEPS = 12
"""Steps of the run."""
EVERY = 3
"""Steps between evaluations, and between saves."""

Requests = list[tuple[int, str]]
"""What a callback has asked for, in order: step, and `stop`, `save` or `evaluate`."""


@dataclass
class FakeRun:
    """The view of a run that trains nothing: the loss falls and then rises again."""

    run_dir: Path
    step: int = 0
    total_steps: int = N_STEPS
    rank: int = 0
    n_ranks: int = 1
    metrics: dict[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=run_config)
    requests: Requests = field(default_factory=list)

    def model(self, role: str = "model") -> Any:
        """No model: a check that needs one is skipped."""
        raise Skipped(f"the callback uses the model of the role '{role}', which the kit does not have")

    def request_stop(self, reason: str) -> None:
        """Remember the request."""
        self.requests.append((self.step, "stop"))

    def request_save(self) -> None:
        """Remember the request."""
        self.requests.append((self.step, "save"))

    def request_evaluation(self) -> None:
        """Remember the request."""
        self.requests.append((self.step, "evaluate"))


@dataclass(frozen=True, kw_only=True)
class CallbackSubject(SpecSubject[CallbackSpec]):
    """A callback."""

    @cached_property
    def cls(self) -> Any:
        """The class of the callback."""
        return self.spec.callback_class()

    def at(self, method: str) -> str:
        """The location of a method, or of the class if it has no such method."""
        return reference_location(self.spec.callback, method)

    def train(self, callback: Any, run: FakeRun, until: int = N_STEPS) -> None:
        """Call the methods of a callback as a run does, from `run.step` to step `until`."""
        _call(callback, "on_train_begin", run)
        while run.step < until:
            run.step += 1
            run.metrics["train/loss"] = 2 + abs(run.step - N_STEPS / 2) / 4
            _call(callback, "on_step_end", run)
            if run.step % EVERY == 0:
                run.metrics["eval/loss"] = run.metrics["train/loss"] + 0.5
                _call(callback, "on_evaluate", run)
                _call(callback, "on_save", run, run.run_dir / "checkpoints" / f"step-{run.step:06d}")
        _call(callback, "on_train_end", run)


def _call(callback: Any, hook: str, run: FakeRun, *arguments: Any) -> None:
    method = getattr(callback, hook, None)
    if method is not None:
        method(run, *arguments)
