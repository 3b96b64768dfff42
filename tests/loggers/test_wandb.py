"""Weights & Biases by a stand-in that remembers its calls; tests/installed_loggers has the real one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.loggers import CONFIG, FakeRun, built_in, part_of_a_run


class FakeWandb:
    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.runs: list[FakeRun] = []

    def init(self, **options: Any) -> FakeRun:
        self.inits.append(options)
        self.runs.append(FakeRun(options["id"]))
        return self.runs[-1]


@pytest.fixture
def wandb(stand_in: Any) -> FakeWandb:
    fake = FakeWandb()
    stand_in("wandb", init=fake.init, Settings=lambda **options: SimpleNamespace(**options))
    return fake


def test_wandb_gets_the_name_the_configuration_and_the_steps(tmp_path: Path, wandb: FakeWandb) -> None:
    part_of_a_run(built_in("wandb", tmp_path), 1, 2)
    (init,), (run,) = wandb.inits, wandb.runs
    assert init["project"] == "reallm"
    assert init["name"] == tmp_path.name
    assert init["config"] == CONFIG
    assert Path(init["dir"]) == tmp_path
    assert init["resume"] is None
    assert run.defined["*"] == {"step_metric": "step"}
    assert run.rows == [
        {"train/loss": 1.0, "step": 1}, {"train/loss": 0.5, "step": 2}, {"eval/loss": 1.0, "step": 2},
    ]  # fmt: skip
    assert run.finished == 1


def test_wandb_saves_no_code_and_captures_no_output(tmp_path: Path, wandb: FakeWandb) -> None:
    built_in("wandb", tmp_path)
    assert wandb.inits[0]["save_code"] is False
    assert wandb.inits[0]["settings"].console == "off"


def test_wandb_goes_by_the_environment_and_the_name_of_the_run(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "of-a-sweep")
    built_in("wandb", tmp_path, config={"name": "first"})
    assert (wandb.inits[0]["project"], wandb.inits[0]["name"], wandb.inits[0]["id"]) == ("mine", "first", "of-a-sweep")


def test_a_continued_run_continues_the_wandb_run_of_its_folder(tmp_path: Path, wandb: FakeWandb) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    first.mkdir()
    other.mkdir()
    part_of_a_run(built_in("wandb", first), 1, 2, 3)
    part_of_a_run(built_in("wandb", other), 1)
    part_of_a_run(built_in("wandb", first, resume_step=2), 3, 4)
    ids, resumed = zip(*((init["id"], init["resume"]) for init in wandb.inits), strict=True)
    assert ids[0] == ids[2] != ids[1]
    assert resumed == (None, None, "allow")
    assert [row["step"] for row in wandb.runs[2].rows] == [3, 4, 4]
