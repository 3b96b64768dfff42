"""trackio's database on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.installed_loggers.conftest import PartOfARun

pytest.importorskip("trackio", reason="trackio is not installed: tox run -e loggers")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "database"


def query(database: Path, sql: str, project: str = "reallm") -> list[dict[str, Any]]:
    """What trackio's own command finds in a project."""
    command = [sys.executable, "-m", "trackio.cli", "query", "project", "--project", project, "--sql", sql, "--json"]
    environment = {"TRACKIO_DIR": str(database), "HOME": str(database), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout)["rows"])


def logged(database: Path) -> list[tuple[str, int, dict[str, float]]]:
    rows = query(database, "SELECT run_id, step, metrics FROM metrics ORDER BY id")
    return [(row["run_id"], row["step"], json.loads(row["metrics"])) for row in rows]


def test_a_run_is_there_to_be_shown(tmp_path: Path, database: Path, part_of_a_run: PartOfARun) -> None:
    part_of_a_run("trackio", tmp_path / "mine", 1, 2, TRACKIO_DIR=str(database))
    assert query(database, "SELECT DISTINCT run_name FROM metrics") == [{"run_name": "mine"}]
    rows = logged(database)
    assert [(step, metrics.get("train/loss"), metrics.get("eval/loss")) for _, step, metrics in rows] == [
        (1, 1.0, None), (2, 0.5, None), (2, None, 1.0),
    ]  # fmt: skip
    (config,) = query(database, "SELECT config FROM configs")
    assert json.loads(config["config"])["optimizer"] == {"lr": 1e-3}


def test_a_continued_run_continues_the_same_run(tmp_path: Path, database: Path, part_of_a_run: PartOfARun) -> None:
    part_of_a_run("trackio", tmp_path / "mine", 1, 4, TRACKIO_DIR=str(database))
    part_of_a_run("trackio", tmp_path / "mine", 3, 6, 2, TRACKIO_DIR=str(database))
    rows = logged(database)
    assert len({run_id for run_id, _, _ in rows}) == 1
    assert [step for _, step, _ in rows] == [1, 2, 2, 3, 4, 4, 3, 4, 4, 5, 6, 6]


def test_a_newer_run_of_the_same_name_is_left_alone(tmp_path: Path, database: Path, part_of_a_run: PartOfARun) -> None:
    (tmp_path / "other").mkdir()
    part_of_a_run("trackio", tmp_path / "mine", 1, 2, TRACKIO_DIR=str(database))
    part_of_a_run("trackio", tmp_path / "other" / "mine", 1, 1, TRACKIO_DIR=str(database))
    part_of_a_run("trackio", tmp_path / "mine", 3, 3, 2, TRACKIO_DIR=str(database))
    steps: dict[str, list[int]] = {}
    for run_id, step, _ in logged(database):
        steps.setdefault(run_id, []).append(step)
    assert list(steps.values()) == [[1, 2, 2], [1], [3]]


def test_the_project_is_that_of_the_environment(tmp_path: Path, database: Path, part_of_a_run: PartOfARun) -> None:
    part_of_a_run("trackio", tmp_path / "mine", 1, 1, TRACKIO_DIR=str(database), TRACKIO_PROJECT="other")
    assert query(database, "SELECT step FROM metrics", project="other") == [{"step": 1}]
