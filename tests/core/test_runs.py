"""`reallm runs`: what became of each run, and how to go on."""

from __future__ import annotations

import fcntl
import json
import math
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from reallm.cli.main import run
from reallm.experiments.runs import files as run_files
from reallm.experiments.runs import folder as run_folder
from reallm.experiments.runs.info import RunError, find_run, list_runs, read_run
from tests.helpers.run_folders import write_run


@pytest.fixture
def reallm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Runs a command line in an empty folder; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def command(*arguments: str) -> tuple[int, str, str]:
        code = run(arguments)
        return (code, *capsys.readouterr())

    return command


# ---------------------------------------------------------------- the table


def test_a_row_tells_state_steps_losses_start_and_time_in_80_columns(reallm):
    write_run(Path("runs/sft-20260102-030405"), eval_losses={0: 3.5, 3: 2.25}, total_steps=500)
    code, out, err = reallm("runs")
    assert (code, err) == (0, "")
    title, row = out.splitlines()
    assert title.split() == ["Run", "State", "Steps", "Loss", "Eval", "loss", "Started", "Time"]
    started = "01-02 03:04" if datetime.now().year == 2026 else "2026-01-02"
    assert row.split() == ["sft-20260102-030405", "done", "3/500", "1.500", "2.250", *started.split(), "1:01"]
    assert max(map(len, out.splitlines())) <= 80


def test_the_newest_run_is_first_and_runs_a_level_below_are_found(reallm):
    write_run(Path("runs/old"), started="2026-01-01T00:00:00")
    write_run(Path("runs/demo/run"), started="2026-03-01T00:00:00")
    write_run(Path("runs/new"), started="2026-02-01T00:00:00")
    Path("runs/not-a-run").mkdir()
    Path("runs/compare.png").touch()
    _, out, _ = reallm("runs")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["demo/run", "new", "old"]


def test_what_ended_early_can_be_continued_by_copying_a_line(reallm):
    write_run(Path("runs/a"), status="stopped", resumable=True, total_steps=9)
    write_run(Path("runs/b b"), status="failed", resumable=True, error="loss is NaN at step 4")
    write_run(Path("runs/c"), status="stopped")  # nothing was saved
    write_run(Path("runs/d"), resumable=True)  # done
    _, out, _ = reallm("runs")
    lines = out.splitlines()
    assert "b b failed: loss is NaN at step 4" in lines
    assert [line for line in lines if line.startswith("continue")] == [
        "continue with: reallm sft 'resume=runs/b b'",
        "continue with: reallm sft resume=runs/a",
    ]


def test_many_hints_are_counted_not_listed(reallm):
    for number in range(8):
        write_run(Path(f"runs/{number}"), status="stopped", resumable=True)
    _, out, _ = reallm("runs")
    assert out.count("continue with") == 5
    assert out.splitlines()[-1] == "and 3 more"


def test_an_empty_folder_is_no_mistake(reallm):
    assert reallm("runs") == (
        0,
        "no runs in runs yet; `reallm demo` makes one, `reallm sft --help` says how to make your own\n",
        "",
    )
    Path("elsewhere").mkdir()
    assert reallm("runs", "elsewhere")[0] == 0
    assert reallm("runs", "--json") == (0, "[]\n", "")


def test_a_folder_that_is_not_there_is_one(reallm):
    assert reallm("runs", "elsewhere") == (2, "", "error: no folder elsewhere\n")


def test_a_run_can_be_listed_by_itself(reallm):
    write_run(Path("runs/a"))
    write_run(Path("runs/b"))
    _, out, _ = reallm("runs", "runs/a")
    assert [line.split()[0] for line in out.splitlines()[1:]] == ["a"]


def test_json_has_everything(reallm):
    best = {"metric": "eval/loss", "value": 2.25, "step": 3, "checkpoint": "checkpoints/step-000003"}
    write_run(Path("runs/a"), eval_losses={3: 2.25}, status="stopped", resumable=True, best=best)
    write_run(Path("runs/b"), losses=[], started="2025-01-01T00:00:00", metrics={"train/loss": None})
    a, b = json.loads(reallm("runs", "--json")[1])
    assert a == {
        "path": "runs/a",
        "name": "a",
        "status": "stopped",
        "algorithm": "sft",
        "steps": 3,
        "total_steps": 3,
        "epochs": 0.3,
        "metrics": {"train/loss": 1.5, "train/lr": 0.001, "train/tokens": 100, "eval/loss": 2.25},
        "best": {**best, "checkpoint": "runs/a/checkpoints/step-000003"},
        "checkpoint": "runs/a/checkpoints/step-000003",
        "started": "2026-01-02T03:04:05",
        "seconds": 61.0,
        "error": None,
        "train_samples": 40,
        "valid_samples": 4,
        "parameters": {"model": 476160},
        "loss": 1.5,
        "eval_loss": 2.25,
        "resume": "reallm sft resume=runs/a",
    }
    assert b["loss"] is None
    assert b["resume"] is None


def test_nothing_heavy_is_imported(tmp_path):
    write_run(tmp_path / "runs" / "a", status="running")
    code = "import sys; from reallm.cli.main import run; run(['runs']); print('imported:', *sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, cwd=tmp_path
    )
    table, _, imported = done.stdout.partition("imported:")
    assert "killed" in table
    assert not {"torch", "transformers", "numpy", "matplotlib", "omegaconf"} & set(imported.split())


# ---------------------------------------------------------------- what is read


def test_a_run_that_says_running_is_running_while_it_holds_its_lock_and_killed_after(tmp_path):
    path = write_run(tmp_path / "a", status="running", total_steps=9)
    (path / ".lock").touch()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True);"
            "sys.stdin.read()",
            str(path / ".lock"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert read_run(path).status == "running"
    assert read_run(path).resume_command is None
    holder.communicate()
    assert read_run(path).status == "killed"


def test_looking_at_a_lock_makes_no_file_and_keeps_nobody_out(tmp_path):
    path = write_run(tmp_path / "a", status="running")
    assert read_run(path).status == "killed"
    assert not (path / ".lock").exists()
    (path / ".lock").touch()
    assert read_run(path).status == "killed"
    with (path / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if the reader still held it
        assert run_files.is_held(path / ".lock") is True


def test_where_locks_do_not_work_the_summary_is_believed(tmp_path, monkeypatch):
    def flock(descriptor: int, operation: int) -> None:
        raise OSError("no locks here")

    path = write_run(tmp_path / "a", status="running")
    (path / ".lock").touch()
    monkeypatch.setattr(fcntl, "flock", flock)
    assert read_run(path).status == "running"


def test_a_killed_run_shows_the_steps_after_its_last_summary_and_how_long_it_lived(tmp_path):
    path = write_run(tmp_path / "a", losses=[3.0, 2.0, 1.0], status="running", steps=1, metrics={"train/loss": 3.0})
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')  # it was killed while it wrote this
    now = time.time()
    os.utime(path / "summary.json", (now - 30, now - 30))
    os.utime(path / "metrics.jsonl", (now - 10, now - 10))
    info = read_run(path)
    assert (info.status, info.steps, info.loss) == ("killed", 3, 1.0)
    assert info.seconds == pytest.approx(81, abs=0.1)


def test_losses_that_are_not_numbers_are_nan(tmp_path):
    path = write_run(tmp_path / "a", metrics={"train/loss": None, "eval/loss": 2})
    info = read_run(path)
    assert info.loss is not None
    assert math.isnan(info.loss)
    assert info.eval_loss == 2


def test_another_algorithm_has_other_names_for_its_losses(tmp_path):
    metrics = {"eval/actor/loss": 1.5, "actor/loss": 1.0, "critic/loss": 4.0}
    info = read_run(write_run(tmp_path / "a", call="actor", metrics=metrics))
    assert (info.loss, info.eval_loss) == (1.0, 1.5)


@pytest.mark.parametrize(("interrupted", "status"), [(False, "done"), (True, "stopped")])
def test_a_summary_of_an_earlier_version_is_understood(tmp_path, interrupted, status):
    path = write_run(tmp_path / "a")
    summary = {"steps": 3, "total_steps": 5, "interrupted": interrupted, "seconds": 4.0, "metrics": {"train/loss": 1.5}}
    (path / "summary.json").write_text(json.dumps(summary))
    info = read_run(path)
    assert (info.status, info.steps, info.total_steps, info.loss) == (status, 3, 5, 1.5)
    assert info.started is not None
    assert info.resume_command is None


def test_metrics_alone_are_a_run(tmp_path):
    path = write_run(tmp_path / "a")
    (path / "summary.json").unlink()
    info = read_run(path)
    assert (info.status, info.steps, info.loss, info.total_steps) == ("killed", 3, 1.5, None)


def test_a_checkpoint_that_was_removed_is_not_offered(tmp_path):
    path = write_run(tmp_path / "a", status="stopped", checkpoint="checkpoints/step-000003")
    assert read_run(path).checkpoint is None
    assert read_run(path).resume_command is None


def test_a_checkpoint_without_training_state_is_shown_but_cannot_be_continued(tmp_path):
    path = write_run(tmp_path / "a", status="stopped", resumable=True)
    assert read_run(path).resume_command == f"reallm sft resume={path}"
    (path / "checkpoints" / "step-000003" / run_folder.TRAINING_STATE).rmdir()
    assert read_run(path).checkpoint == path / "checkpoints" / "step-000003"
    assert read_run(path).resume_command is None


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "null", '{"metrics": 3, "best": [], "started": "soon", "steps": "x"}']
)
def test_a_damaged_summary_hides_no_other_run(tmp_path, content):
    path = write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    (path / "summary.json").write_text(content)
    assert {info.name: info.steps for info in list_runs(tmp_path)} == {"a": 3, "b": 3}


# ---------------------------------------------------------------- which run


def test_a_run_is_found_by_name_or_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/a"))
    write_run(Path("runs/demo/run"))
    write_run(Path("other/b"))
    found = {
        name: (find_run(name, Path("runs")).name, str(find_run(name, Path("runs")).path))
        for name in ("a", "runs/a", "runs/a/", "demo/run", "other/b")
    }
    assert found == {
        "a": ("a", "runs/a"),
        "runs/a": ("a", "runs/a"),
        "runs/a/": ("a", "runs/a"),
        "demo/run": ("demo/run", "runs/demo/run"),
        "other/b": ("other/b", "other/b"),
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("frist-try", "no run runs/frist-try; did you mean runs/first-try?"),
        ("runs/frist-try", "no run runs/frist-try; did you mean runs/first-try?"),
        ("zzz", "no run runs/zzz; `reallm runs runs` lists those that are there"),
        ("demo", "runs/demo is not a run, but holds 1; write runs/demo/run"),
        ("other", "other is not a run: it has neither summary.json nor metrics.jsonl"),
        ("nowhere/a", "no run runs/nowhere/a: there is no folder runs/nowhere"),
    ],
)
def test_a_run_that_is_not_there_names_the_nearest(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    write_run(Path("runs/first-try"))
    write_run(Path("runs/demo/run"))
    Path("other").mkdir()
    with pytest.raises(RunError) as caught:
        find_run(name, Path("runs"))
    assert str(caught.value) == message
