"""Services that cannot be reached, by stand-ins for their packages."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reallm import builtin
from reallm.experiments.run.loggers import Loggers
from tests.helpers.loggers import CONFIG, FakeRun, part_of_a_run


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_that_cannot_be_reached_is_one_line(tmp_path: Path, stand_in: Any, name: str) -> None:
    def init(**options: Any) -> None:
        raise RuntimeError("No API key configured.\nUse `wandb login` to log in.")

    stand_in(name, init=init, Settings=SimpleNamespace)
    said: list[str] = []
    loggers = Loggers({name: builtin.reallm_loggers()[name]}, tmp_path, CONFIG, said.append)
    part_of_a_run(loggers, 1)
    assert said == [
        f"logger '{name}' failed and is switched off: RuntimeError: No API key configured. Use `wandb login` to log in."
    ]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_that_fails_on_the_way_is_one_line(tmp_path: Path, stand_in: Any, name: str) -> None:
    class Lost(FakeRun):
        def log(self, row: dict[str, float], step: int | None = None) -> None:
            raise BrokenPipeError("the service is gone")

    run = Lost("id")
    stand_in(name, init=lambda **options: run, finish=run.finish, Settings=SimpleNamespace)
    said: list[str] = []
    loggers = Loggers({name: builtin.reallm_loggers()[name]}, tmp_path, CONFIG, said.append)
    part_of_a_run(loggers, 1, 2)
    assert said == [f"logger '{name}' failed and is switched off: BrokenPipeError: the service is gone"]
    assert run.finished == 1
