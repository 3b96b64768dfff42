"""`reallm runs`: what became of each run, and how to go on."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from reallm.cli.main import run
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
    assert reallm("runs", "elsewhere") == (2, "", "error: elsewhere is neither a folder nor a run in runs\n")
    write_run(Path("runs/first-try"))
    message = "error: frist-try is neither a folder nor a run in runs; did you mean 'first-try'?\n"
    assert reallm("runs", "frist-try") == (2, "", message)


def test_a_run_can_be_listed_by_itself(reallm):
    write_run(Path("runs/a"))
    write_run(Path("runs/b"))
    for given in ("runs/a", "a"):
        _, out, _ = reallm("runs", given)
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
        "stop_reason": None,
        "question": None,
        "train_samples": 40,
        "valid_samples": 4,
        "parameters": {"model": 476160},
        "loss": 1.5,
        "eval_loss": 2.25,
        "reward": None,
        "eval_reward": None,
        "resume": "reallm sft resume=runs/a",
    }
    assert b["loss"] is None
    assert b["resume"] is None


def test_nothing_heavy_is_imported(tmp_path):
    write_run(tmp_path / "runs" / "a", status="running")
    code = "import sys; from reallm.cli.main import run; run(['runs']); print('imported:', *sorted(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240, cwd=tmp_path
    )
    table, _, imported = done.stdout.partition("imported:")
    assert "killed" in table
    assert not {"torch", "transformers", "numpy", "matplotlib", "omegaconf"} & set(imported.split())


def test_of_runs_that_are_trained_on_rewards_these_are_shown(reallm):
    write_run(Path("runs/grpo"), metrics={"train/loss": 0.01, "train/reward": 0.25, "eval/reward": 0.5})
    title, row = reallm("runs")[1].splitlines()
    assert title.split() == ["Run", "State", "Steps", "Reward", "Eval", "reward", "Started", "Time"]
    assert row.split()[:5] == ["grpo", "done", "3/3", "0.2500", "0.5000"]
    write_run(Path("runs/sft"), started="2026-01-01T00:00:00")
    _, grpo, sft = reallm("runs")[1].splitlines()
    assert grpo.split()[3:6] == ["0.2500", "0.5000", "01-02"], "not its loss"
    assert sft.split()[:4] == ["sft", "done", "3/3", "1.500"]
    found = json.loads(reallm("runs", "--json")[1])
    assert [(run["reward"], run["eval_reward"]) for run in found] == [(0.25, 0.5), (None, None)]


def test_names_and_errors_of_runs_do_not_drive_the_terminal(reallm, tmp_path):
    write_run(tmp_path / "runs" / "a\x1b[2Jb", status="failed", error="no\x1b[31m\nline")
    code, out, _ = reallm("runs")
    assert code == 0
    assert "\x1b" not in out
    assert r"a\x1b[2Jb" in out
    assert r"failed: no\x1b[31m\nline" in out
