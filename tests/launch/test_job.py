"""`reallm sft` on several processes: what is printed, by which rank, and how it ends."""

import json
import math
import re
import signal
from pathlib import Path

import pytest

from tests.helpers.jobs import Command, ended_soon, losses, make_inputs, sft, side_by_side


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def test_it_starts_the_processes_and_trains_as_one_would(inputs: Path, tmp_path: Path):
    alone = Command(tmp_path, sft(inputs, tmp_path, "name=alone")).end()
    together = Command(tmp_path, sft(inputs, tmp_path, "name=together", "parallel.dp=2")).end()
    assert (alone.code, together.code) == (0, 0), together.err
    assert together.errors == []
    assert "dp=2 on 2 processes, ZeRO stage 1" in together.out
    lines = [line for line in together.out.splitlines() if not line.startswith("step ")]
    assert len(lines) == len(set(lines)), "one rank prints"
    assert "saving: training waits for each save; async_save=true has no effect with several processes" in lines
    assert "async_save" not in alone.out
    # The same sums in another order, in float32: relative differences of 1e-6 a step, over 4 steps.
    pairs = zip(losses(tmp_path / "alone"), losses(tmp_path / "together"), strict=True)
    assert all(math.isclose(one, other, rel_tol=1e-4) for one, other in pairs)


def test_a_killed_rank_ends_the_job_with_one_line(inputs: Path, tmp_path: Path):
    command = Command(tmp_path, sft(inputs, tmp_path, "name=run", "parallel.dp=2", "epochs=100000", "save_every=1"))
    command.wait_for("step 1/")
    pid = command.kill_rank(1)
    ended = command.end()
    assert ended.code != 0
    (line,) = ended.errors
    where = r"( in call '\w+'| after its last call)?"
    assert re.match(rf"error: rank 1 \(process {pid}\) was killed \(SIGKILL\){where}: by someone, or by the", line)
    assert line.endswith((f"; to resume: reallm sft resume={tmp_path / 'run'}", "; nothing was saved yet"))


def test_ctrl_c_saves_after_the_same_step_on_all_ranks(inputs: Path, tmp_path: Path):
    command = Command(tmp_path, sft(inputs, tmp_path, "name=run", "parallel.dp=2", "epochs=100000"))
    command.wait_for("step 1/")
    command.process.send_signal(signal.SIGINT)
    ended = command.end()
    assert ended.code == 130
    assert ended.errors == [
        "stopping after this step and saving; press Ctrl-C again to stop at once without saving",
        "interrupted",
    ]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped"
    assert f"to resume: reallm sft resume={tmp_path / 'run'}" in ended.out


def test_what_is_found_out_about_the_rows_is_said_once(inputs: Path, tmp_path: Path):
    rows = [{"instruction": f"Say {n}:", "output": " red sun", "unused": "x" * 1_000_000} for n in range(9)]
    (tmp_path / "large.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = sft(inputs, tmp_path, f"dataset.cache_dir={tmp_path / 'cache'}", "max_steps=1", "name=run")
    ended = side_by_side(tmp_path, [[*arguments, f"dataset.train_path={tmp_path / 'large.jsonl'}"]] * 2)
    assert [each.code for each in ended] == [0, 0]
    notes = [line for each in ended for line in each.errors if "rows look like" in line]
    assert notes == [f"note: {tmp_path / 'large.jsonl'}: rows look like Alpaca"]


def test_mistakes_are_found_before_processes_are_started(inputs: Path, tmp_path: Path):
    ended = Command(tmp_path, sft(inputs, tmp_path, "parallel.tp=3")).end()
    assert ended.code == 2
    assert ended.errors == [
        "error: parallel.tp=3 does not fit the model's 4 query heads; use tp=1 or 2 or 4 "
        f"(model.path={inputs / 'model'})"
    ]


def test_ranks_that_were_started_with_other_settings(inputs: Path, tmp_path: Path):
    common = sft(inputs, tmp_path / "runs")
    first, second = side_by_side(tmp_path, [[*common, "seed=1"], [*common, "seed=2"]])
    assert (first.code, second.code) == (2, 2)
    assert first.errors == [
        "error: seed is 2 on rank 1 and 1 on rank 0; all processes of a job must have the same settings, packages and "
        "files"
    ]
    assert second.errors == []
    assert not (tmp_path / "runs").exists()


def test_a_rank_reports_an_error_that_it_alone_has(inputs: Path, tmp_path: Path):
    common = sft(inputs, tmp_path / "runs")
    first, second = side_by_side(tmp_path, [common, [*common, "dataset.train_path=nowhere.jsonl"]])
    assert (first.code, second.code) == (2, 2)
    assert first.errors == []
    (line,) = second.errors
    assert line.startswith("error: rank 1: dataset.train_path: nowhere.jsonl: no such file")


def test_an_unexpected_error_keeps_its_traceback_once(inputs: Path, tmp_path: Path):
    broken = """
import os
import sys
from reallm.cli.main import main
from reallm.training.engine import TrainEngine

train = TrainEngine.train_batch
def breaking(self, batch, objective):
    if self.step == 1 and os.environ["SLURM_PROCID"] == "1":
        raise ZeroDivisionError("of rank 1")
    return train(self, batch, objective)
TrainEngine.train_batch = breaking
main()
"""
    first, second = side_by_side(tmp_path, [sft(inputs, tmp_path / "runs")] * 2, broken)
    assert first.errors == []
    assert second.err.startswith("rank 1:\nTraceback")
    assert re.search(
        r"\nZeroDivisionError: of rank 1\nraised in algorithm 'sft' of reallm-core [\d.]+\w*\n$", second.err
    )
    assert second.code == 1


def test_the_processes_end_with_the_one_that_started_them(inputs: Path, tmp_path: Path):
    command = Command(tmp_path, sft(inputs, tmp_path, "parallel.dp=2", "epochs=100000"))
    command.wait_for("step 1/")
    pids = command.ranks().values()
    command.process.kill()
    command.end()
    for pid in pids:
        ended_soon(pid)
