"""Ranks are killed with SIGKILL at any moment, again and again: each time the job says which one, and goes on."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.jobs import Command, losses, make_inputs, sft

STEPS = 60
ENDS_WITHIN_S = 30.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def arguments(inputs: Path, output: Path, *layout: str) -> list[str]:
    steps = (f"max_steps={STEPS}", f"epochs={STEPS}", "save_every=1", "optimizer.eps=1e-3")
    return sft(inputs, output, "name=run", "resume=auto", *steps, *layout)


def wait_for_step(run: Path, step: int, timeout_s: float = 120.0) -> None:
    until = time.monotonic() + timeout_s
    while not (run / "metrics.jsonl").is_file() or len(losses(run)) < step:
        assert time.monotonic() < until
        time.sleep(0.01)


def has_exited(pid: int) -> bool:
    """Whether a process has ended, waited for by its parent or not yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def killed(command: Command, rank: int, seconds: float) -> bool:
    """Kill a rank so long after it was started, and check what is said; False if the run was done before."""
    while rank not in command.ranks():
        assert command.process.poll() is None
        time.sleep(0.01)
    pid, until = command.ranks()[rank], time.monotonic() + seconds
    while time.monotonic() < until and command.process.poll() is None:
        time.sleep(0.01)
    if command.process.poll() is not None:
        return False
    if has_exited(pid):  # the run was done, and its command is about to notice
        assert command.end(ENDS_WITHIN_S).code == 0
        return False
    os.kill(pid, signal.SIGKILL)
    ended = command.end(ENDS_WITHIN_S)
    assert ended.code != 0
    (line,) = ended.errors
    assert line.startswith(f"error: rank {rank} (process {pid}) was killed (SIGKILL)"), line
    return True


@pytest.mark.parametrize(
    ("layout", "n_ranks"), [(["parallel.dp=2", "parallel.zero=2"], 2), (["parallel.tp=2"], 2)], ids=["fsdp2", "tp2"]
)
def test_ten_times_and_the_numbers_are_those_of_a_run_without(inputs, tmp_path, layout, n_ranks):
    start = time.monotonic()
    command = Command(tmp_path, arguments(inputs, tmp_path / "undisturbed", *layout))
    wait_for_step(tmp_path / "undisturbed" / "run", 1)
    until_first_step = time.monotonic() - start
    undisturbed = command.end(timeout_s=300)
    assert undisturbed.code == 0, undisturbed.err
    # a part of a run trains at most a sixth of the steps, so that it takes at least five kills to the last one
    longest_s = until_first_step + (time.monotonic() - start - until_first_step) / 6
    draw, kills = random.Random(n_ranks + len(layout)), 0
    while kills < 10:
        command = Command(tmp_path, arguments(inputs, tmp_path / "killed", *layout))
        if not killed(command, draw.randrange(n_ranks), draw.uniform(0.0, longest_s)):
            break  # a run that has come to its end is done
        kills += 1
    ended = Command(tmp_path, arguments(inputs, tmp_path / "killed", *layout)).end(timeout_s=300)
    assert ended.code == 0, ended.err
    assert losses(tmp_path / "killed" / "run") == losses(tmp_path / "undisturbed" / "run")
    assert len(losses(tmp_path / "killed" / "run")) == STEPS
    assert kills >= 5


def test_it_goes_on_with_fewer_ranks(inputs, tmp_path):
    alone = Command(tmp_path, arguments(inputs, tmp_path / "alone")).end(timeout_s=300)
    assert alone.code == 0, alone.err
    layouts = [(["parallel.tp=2", "parallel.pp=2"], 4), (["parallel.dp=2"], 2)]
    for rank, (layout, n_ranks) in enumerate(layouts, 1):
        command = Command(tmp_path, arguments(inputs, tmp_path / "killed", *layout))
        wait_for_step(tmp_path / "killed" / "run", 10 * rank)
        assert killed(command, n_ranks - rank, 0.0)
    ended = Command(tmp_path, arguments(inputs, tmp_path / "killed")).end(timeout_s=300)
    assert ended.code == 0, ended.err
    # float32 sums in another order, over 60 steps
    assert losses(tmp_path / "killed" / "run") == pytest.approx(losses(tmp_path / "alone" / "run"), rel=1e-3)


def test_a_rank_that_is_stopped_is_missed_in_time(inputs, tmp_path):
    waits = ["parallel.timeout_s=8"]
    command = Command(tmp_path, arguments(inputs, tmp_path / "stopped", "parallel.dp=2", *waits))
    wait_for_step(tmp_path / "stopped" / "run", 5)
    pid = command.ranks()[1]
    os.kill(pid, signal.SIGSTOP)
    try:
        ended = command.end(ENDS_WITHIN_S)
    finally:
        os.kill(pid, signal.SIGCONT) if Path(f"/proc/{pid}").exists() else None
    assert ended.code != 0
    (line,) = ended.errors
    assert "rank 1 (process" in line
    assert "did not answer in time" in line
