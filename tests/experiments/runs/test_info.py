"""What is read of a run: what became of it, how far it came, and by which name it is found."""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reallm import foreign_files
from reallm.errors import DataError
from reallm.experiments.runs import folder as run_folder
from reallm.experiments.runs.info import RunError, find_run, list_runs, read_run
from reallm.file_locks import is_locked
from tests.helpers.run_folders import write_run


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
        assert is_locked(path / ".lock") is True


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


def test_a_run_that_the_disk_does_not_give_is_left_out_of_a_list_and_taken_for_no_other(tmp_path, monkeypatch, caplog):
    path = write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    read = foreign_files.read_bytes

    def failing(file, **options):
        if file == path / "summary.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(file))
        return read(file, **options)

    monkeypatch.setattr(foreign_files, "read_bytes", failing)
    assert [run.name for run in list_runs(tmp_path)] == ["b"]
    (note,) = caplog.messages
    assert note.startswith(f"note: a is left out: {path / 'summary.json'} cannot be read")
    with pytest.raises(DataError, match=f"{path / 'summary.json'} cannot be read.*Input/output error"):
        read_run(path)


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
        ("demo", "runs/demo is not a run, but holds a run; write runs/demo/run"),
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


@pytest.mark.parametrize(
    ("written", "read"),
    [("--chat 'Who, me?'", "--chat 'Who, me?'"), ("x; rm -rf ~", "'x;' rm -rf '~'"), ("$(x) 'a", None), (5, None)],
)
def test_what_a_summary_gives_for_a_command_begins_no_second_one(tmp_path, written, read):
    assert read_run(write_run(tmp_path / "a", question=written)).question == read


def test_a_pipe_in_place_of_a_file_hides_no_other_run(tmp_path):
    for name, file in (("a", "metrics.jsonl"), ("b", ".lock")):
        path = write_run(tmp_path / name, status="running")
        (path / file).unlink(missing_ok=True)
        os.mkfifo(path / file)
    write_run(tmp_path / "c")
    assert {run.name: run.status for run in list_runs(tmp_path)} == {"a": "killed", "b": "killed", "c": "done"}
