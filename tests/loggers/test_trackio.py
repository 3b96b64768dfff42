"""trackio by a stand-in that remembers its calls; tests/installed_loggers has the real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.loggers import CONFIG, FakeRun, built_in, part_of_a_run


class FakeTrackio:
    """As trackio does, this finds runs by name: `resume="allow"` continues the newest of that name."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.runs: list[tuple[str, FakeRun]] = []
        self.current: FakeRun | None = None

    def init(self, **options: Any) -> FakeRun:
        self.inits.append(options)
        same_name = [run for name, run in self.runs if name == options["name"]]
        if options["resume"] == "allow" and same_name:
            self.current = same_name[-1]
        else:
            self.current = FakeRun(f"id-{len(self.runs)}")
            self.runs.append((options["name"], self.current))
        return self.current

    def finish(self) -> None:
        assert self.current is not None
        self.current.finish()


@pytest.fixture
def trackio(stand_in: Any) -> FakeTrackio:
    fake = FakeTrackio()
    stand_in("trackio", init=fake.init, finish=fake.finish)
    return fake


def test_trackio_gets_the_name_the_configuration_and_the_steps(tmp_path: Path, trackio: FakeTrackio) -> None:
    part_of_a_run(built_in("trackio", tmp_path), 1, 2)
    assert trackio.inits == [
        {"project": "reallm", "name": tmp_path.name, "config": CONFIG, "resume": "never", "embed": False}
    ]
    assert trackio.runs[0][1].rows == [(1, {"train/loss": 1.0}), (2, {"train/loss": 0.5}), (2, {"eval/loss": 1.0})]
    assert trackio.runs[0][1].finished == 1


def test_trackio_goes_by_the_environment_and_the_name_of_the_run(
    tmp_path: Path, trackio: FakeTrackio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    built_in("trackio", tmp_path, config={"name": "first"})
    assert (trackio.inits[0]["project"], trackio.inits[0]["name"]) == ("mine", "first")


def test_a_continued_run_continues_the_trackio_run_of_its_folder(tmp_path: Path, trackio: FakeTrackio) -> None:
    part_of_a_run(built_in("trackio", tmp_path), 1, 2, 3)
    part_of_a_run(built_in("trackio", tmp_path, resume_step=2), 3, 4)
    ((_, run),) = trackio.runs
    assert [step for step, _ in run.rows] == [1, 2, 2, 3, 3, 4, 4]


def test_a_newer_trackio_run_of_the_same_name_is_left_alone(tmp_path: Path, trackio: FakeTrackio) -> None:
    mine, other = tmp_path / "a" / "run", tmp_path / "b" / "run"
    mine.mkdir(parents=True)
    other.mkdir(parents=True)
    part_of_a_run(built_in("trackio", mine), 1, 2)
    part_of_a_run(built_in("trackio", other), 1)
    part_of_a_run(built_in("trackio", mine, resume_step=2), 3)
    part_of_a_run(built_in("trackio", mine, resume_step=3), 4)
    assert [[step for step, _ in run.rows] for _, run in trackio.runs] == [[1, 2, 2], [1], [3, 4, 4]]
