"""Ranks that are killed or stopped: the job ends in time with a line that names them, and what was saved is whole."""

import math
import signal
from pathlib import Path

import pytest

from tests.helpers.jobs import Command, losses, make_inputs, sft, torchrun

ENDS_WITHIN_S = 120.0
"""Of which the ranks and the launcher take ten seconds to settle who tells of it; the rest is for a busy machine."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def test_rank_0_is_killed_while_it_saves_and_one_process_goes_on(inputs: Path, tmp_path: Path):
    steps = ["max_steps=24", "epochs=24", "save_every=1", "name=run", "resume=auto"]
    command = Command(tmp_path, sft(inputs, tmp_path, *steps, "parallel.pp=2"))
    saved = tmp_path / "run" / "checkpoints"
    command.wait_until(lambda: (saved / "last").exists(), "a first save")
    command.wait_until(lambda: any(path.name.startswith(".") for path in saved.iterdir()), "a save in progress")
    pid = command.kill_rank(0)
    ended = command.end(ENDS_WITHIN_S)
    assert ended.code == 128 + signal.SIGKILL
    (line,) = ended.errors
    assert line.startswith(f"error: rank 0 (process {pid}) was killed (SIGKILL)")
    assert line.endswith(f"; to resume: reallm sft {'resume=' + str(tmp_path / 'run')}")
    again = Command(tmp_path, sft(inputs, tmp_path, *steps)).end()
    assert again.code == 0, again.err
    assert "changed: parallel.pp 2 -> 1" in again.out
    alone = Command(tmp_path, sft(inputs, tmp_path, *steps[:2], "name=alone")).end()
    assert alone.code == 0, alone.err
    pairs = zip(losses(tmp_path / "run"), losses(tmp_path / "alone"), strict=True)
    # The same sums in another order, in float32, over 24 steps of AdamW
    assert all(math.isclose(one, other, rel_tol=1e-3) for one, other in pairs)


def test_a_rank_is_killed_under_torchrun_while_it_loads(inputs: Path, tmp_path: Path):
    command = Command(tmp_path, sft(inputs, tmp_path, "name=run", "epochs=100000"), under=torchrun(2))
    command.wait_until((tmp_path / "run").exists, "a run folder")
    pid = command.kill_rank(1)
    ended = command.end(ENDS_WITHIN_S)
    assert ended.code != 0
    (line,) = [line for line in ended.errors if line.startswith("error: ")]
    assert line.startswith(f"error: rank 1 (process {pid} on ")
    assert line.endswith(" has ended; nothing was saved yet")


def test_a_rank_that_is_stopped_is_missed_in_time(inputs: Path, tmp_path: Path):
    arguments = sft(inputs, tmp_path, "name=run", "parallel.dp=2", "epochs=100000", "parallel.timeout_s=12")
    command = Command(tmp_path, arguments)
    command.wait_for("step 1/")
    pid = command.kill_rank(1, signal.SIGSTOP)
    ended = command.end(ENDS_WITHIN_S)  # with the stopped process too, which the launcher ends
    assert ended.code == 2
    (line,) = ended.errors
    assert line.startswith(f"error: rank 1 (process {pid} on ")
    assert " did not answer in time; see what it is waiting for, or raise parallel.timeout_s" in line
