"""What callbacks see of a run, and what they ask of it."""
# ruff: noqa: D102 - `reallm.specs.RunView` documents the members of `View`

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from reallm.algorithms.role import Role
from reallm.errors import ConfigError, did_you_mean, quoted
from reallm.launch.job import Job


@dataclass
class Requests:
    """What callbacks have asked for and has not been done yet."""

    stop: str | None = None
    """Why the run is to stop; None if it is not."""
    save: bool = False
    evaluate: bool = False


@dataclass
class RunState:
    """The run that callbacks see: what is fixed, and what the run updates before it calls them."""

    run_dir: Path
    config: Mapping[str, Any]
    roles: Mapping[str, Role]
    total_steps: int
    has_validation: bool
    job: Job
    step: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)


class View:
    """The `RunView` of one callback."""

    def __init__(self, name: str, run: RunState, requests: Requests) -> None:
        self._name, self._run, self._requests = name, run, requests
        self._config = MappingProxyType(copy.deepcopy(dict(run.config)))

    @property
    def step(self) -> int:
        return self._run.step

    @property
    def total_steps(self) -> int:
        return self._run.total_steps

    @property
    def metrics(self) -> Mapping[str, float]:
        return MappingProxyType(dict(self._run.metrics))

    @property
    def config(self) -> Mapping[str, Any]:
        return self._config

    @property
    def run_dir(self) -> Path:
        return self._run.run_dir

    @property
    def rank(self) -> int:
        return self._run.job.rank

    @property
    def n_ranks(self) -> int:
        return self._run.job.size

    def model(self, role: str = "model") -> Any:
        if role not in self._run.roles:
            roles = list(self._run.roles)
            raise ConfigError(f"there is no role '{role}'{did_you_mean(role, roles)}; there is {quoted(roles)}")
        return self._run.roles[role].model

    def request_stop(self, reason: str) -> None:
        self._requests.stop = self._requests.stop or f"callback '{self._name}' asked to stop: {reason}"

    def request_save(self) -> None:
        self._requests.save = True

    def request_evaluation(self) -> None:
        if not self._run.has_validation:
            raise ConfigError(
                "it asks for an evaluation, which needs validation data; "
                "give dataset.valid_path or dataset.valid_fraction"
            )
        self._requests.evaluate = True
