"""A rank is killed or stopped in each part of a run, under each way to start one: who is named, and how it goes on."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.jobs import Command, as_under_srun, losses, make_inputs, sft, torchrun

STEPS = 40
ENDS_WITHIN_S = 120.0
"""Of which timeouts are the most; the rest is for a busy machine."""
MOMENTS = ("start", "loading", "training", "saving")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def arguments(inputs: Path, output: Path, *more: str) -> list[str]:
    return sft(
        inputs, output, "name=run", "resume=auto", f"max_steps={STEPS}", f"epochs={STEPS}", "save_every=2", *more
    )


def wait_for(moment: str, command: Command, rank: int, run: Path, draw: random.Random) -> int:
    """Wait for a part of a run and some way into it; the process id of the rank."""
    command.wait_until(lambda: rank in command.ranks(), "a process")
    if moment == "start":
        time.sleep(draw.uniform(0.0, 3.0))
    elif moment == "loading":
        command.wait_until(run.exists, "a run folder")
        time.sleep(draw.uniform(0.0, 0.5))
    else:
        step = draw.randrange(2, STEPS // 2)
        command.wait_until(lambda: n_steps(run) >= step, f"step {step}")
        if moment == "saving":
            saves = run / "checkpoints"
            command.wait_until(lambda: any(path.name.startswith(".") for path in saves.iterdir()), "a save")
        time.sleep(draw.uniform(0.0, 0.03))
    return command.ranks()[rank]


def n_steps(run: Path) -> int:
    """How many it has noted down so far."""
    return len(losses(run)) if (run / "metrics.jsonl").is_file() else 0


def weights(run: Path) -> dict[str, torch.Tensor]:
    files = sorted((run / "checkpoints" / "last").glob("*.safetensors"))
    return {key: value for file in files for key, value in load_file(file).items()}


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory):
    """The run of a layout that nothing happens to."""
    runs: dict[str, Path] = {}

    def run(*layout: str) -> Path:
        key = " ".join(layout)
        if key not in runs:
            folder = tmp_path_factory.mktemp("undisturbed")
            ended = Command(folder, arguments(inputs, folder, *layout)).end(ENDS_WITHIN_S)
            assert ended.code == 0, ended.err
            runs[key] = folder / "run"
        return runs[key]

    return run


def goes_on_to_the_same_end(inputs: Path, folder: Path, layout: Sequence[str], expected: Path) -> None:
    ended = Command(folder, arguments(inputs, folder, *layout)).end(ENDS_WITHIN_S)
    assert ended.code == 0, ended.err
    assert losses(folder / "run") == losses(expected)
    ours, theirs = weights(folder / "run"), weights(expected)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stage_is_killed(inputs: Path, tmp_path: Path, undisturbed, moment: str):
    layout, draw = ["parallel.pp=2"], random.Random(f"pp2 {moment}")
    command, rank = Command(tmp_path, arguments(inputs, tmp_path, *layout)), draw.randrange(2)
    pid = wait_for(moment, command, rank, tmp_path / "run", draw)
    os.kill(pid, signal.SIGKILL)
    ended = command.end(ENDS_WITHIN_S)
    assert ended.code == 128 + signal.SIGKILL
    (line,) = ended.errors
    assert line.startswith(f"error: rank {rank} (process {pid}) was killed (SIGKILL)")
    goes_on_to_the_same_end(inputs, tmp_path, layout, undisturbed(*layout))


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_rank_is_killed_under_torchrun(inputs: Path, tmp_path: Path, undisturbed, moment: str):
    layout, draw = ["parallel.dp=2", "parallel.zero=3"], random.Random(f"torchrun {moment}")
    command = Command(tmp_path, arguments(inputs, tmp_path, *layout), under=torchrun(2))
    rank = draw.randrange(2)
    pid = wait_for(moment, command, rank, tmp_path / "run", draw)
    os.kill(pid, signal.SIGKILL)
    ended = command.end(ENDS_WITHIN_S)
    assert ended.code != 0
    assert f"failed (exitcode: -9) local_rank: {rank} (pid: {pid})" in ended.err, "what torchrun says"
    lines = [line for line in ended.errors if line.startswith("error: ")]
    if moment != "start":  # else the other may have been ended by torchrun before it could see anything
        assert len(lines) == 1, ended.err
    assert all(line.startswith(f"error: rank {rank} (process {pid} on ") for line in lines)
    goes_on_to_the_same_end(inputs, tmp_path, layout, undisturbed(*layout))


@pytest.mark.parametrize("moment", MOMENTS)
def test_one_of_four_is_killed_and_two_go_on(inputs: Path, tmp_path: Path, undisturbed, moment: str):
    draw = random.Random(f"four {moment}")
    command = Command(tmp_path, arguments(inputs, tmp_path, "parallel.pp=2", "parallel.dp=2"))
    rank = draw.randrange(4)
    pid = wait_for(moment, command, rank, tmp_path / "run", draw)
    os.kill(pid, signal.SIGKILL)
    ended = command.end(ENDS_WITHIN_S)
    (line,) = ended.errors
    assert line.startswith(f"error: rank {rank} (process {pid}) was killed (SIGKILL)")
    ended = Command(tmp_path, arguments(inputs, tmp_path, "parallel.tp=2")).end(ENDS_WITHIN_S)
    assert ended.code == 0, ended.err
    # float32 sums in another order, over 40 steps of AdamW
    assert losses(tmp_path / "run") == pytest.approx(losses(undisturbed("parallel.tp=2")), rel=1e-3)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_rank_is_stopped(inputs: Path, tmp_path: Path, moment: str, rank: int):
    draw = random.Random(f"stop {moment} {rank}")
    command = Command(tmp_path, arguments(inputs, tmp_path, "parallel.dp=2", "parallel.timeout_s=15"))
    pid = wait_for(moment, command, rank, tmp_path / "run", draw)
    os.kill(pid, signal.SIGSTOP)
    ended = command.end(ENDS_WITHIN_S)
    assert ended.code == 2
    (line,) = ended.errors
    assert line.startswith(f"error: rank {rank} (")
    assert "raise parallel.timeout_s" in line
    assert not Path(f"/proc/{pid}").exists(), "the stopped process has been ended too"


def test_the_rank_with_the_store_is_stopped(inputs: Path, tmp_path: Path):
    first, second = as_under_srun(tmp_path, [arguments(inputs, tmp_path, "parallel.timeout_s=5")] * 2)
    try:
        first.wait_until(lambda: n_steps(tmp_path / "run") >= 3, "step 3")
        first.process.send_signal(signal.SIGSTOP)
        ended = second.end(ENDS_WITHIN_S)
    finally:
        first.process.kill()
        first.process.wait()
    assert ended.code == 2
    (line,) = ended.errors
    assert line.startswith("error: rank 0 or its launcher, at 127.0.0.1:")
    assert "has not answered for 30 s; see what it is waiting for" in line
