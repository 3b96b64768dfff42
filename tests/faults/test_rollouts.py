"""A run on rewards is killed while it generates, and while a reward function runs: it goes on to the same end."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.jobs import Command, make_inputs

STEPS = 8
ENDS_WITHIN_S = 300.0
OF_THE_MACHINE = ("tokens_per_s", "memory_gib")
REWARD = """
import pathlib
import random
import time

def slow(completions, notes, **columns):
    pathlib.Path(notes[0], str(time.monotonic_ns())).touch()
    time.sleep(0.1)
    return [len(set(text)) + random.random() for text in completions]
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def arguments(inputs: Path, folder: Path) -> list[str]:
    """A run of GRPO; its reward function makes a file in `folder/calls` when it is called."""
    (folder / "calls").mkdir(exist_ok=True)
    (folder / "rewards.py").write_text(REWARD)
    rows = [{"prompt": f"Say {i}.", "notes": str(folder / "calls")} for i in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "grpo", f"actor.path={inputs / 'model'}", "actor.device=cpu", f"dataset.train_path={folder / 'prompts.jsonl'}",
        "dataset.train_bs_n_seqs=2", f"reward={folder / 'rewards.py'}:slow", "reward_processes=1", "num_generations=2",
        "gen.max_new_tokens=48", f"max_steps={STEPS}", "epochs=9", "save_every=2", "loggers=[jsonl]", "name=run",
        "resume=auto", f"output_dir={folder}",
    ]  # fmt: skip


def n_steps(folder: Path) -> int:
    file = folder / "run" / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def numbers(folder: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (folder / "run" / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.endswith(OF_THE_MACHINE)} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "run" / "checkpoints" / "last").glob("*.safetensors"))
    return {key: value for file in files for key, value in load_file(file).items()}


@pytest.fixture(scope="module")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("undisturbed")
    ended = Command(folder, arguments(inputs, folder)).end(ENDS_WITHIN_S)
    assert ended.code == 0, ended.err
    return folder


@pytest.mark.parametrize("moment", ["generation", "reward"])
def test_it_goes_on_to_the_same_end(inputs: Path, tmp_path: Path, undisturbed: Path, moment: str) -> None:
    command = Command(tmp_path, arguments(inputs, tmp_path))
    command.wait_until(lambda: n_steps(tmp_path) >= 3, "step 3", ENDS_WITHIN_S)
    if moment == "reward":
        calls = len(list((tmp_path / "calls").iterdir()))
        command.wait_until(lambda: len(list((tmp_path / "calls").iterdir())) > calls, "a call")
    assert n_steps(tmp_path) < STEPS
    os.kill(command.process.pid, signal.SIGKILL)
    assert command.end(ENDS_WITHIN_S).code != 0
    ended = Command(tmp_path, arguments(inputs, tmp_path)).end(ENDS_WITHIN_S)
    assert ended.code == 0, ended.err
    assert numbers(tmp_path) == numbers(undisturbed)
    ours, theirs = weights(tmp_path), weights(undisturbed)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_it_goes_on_in_another_allocation(inputs: Path, tmp_path: Path, undisturbed: Path) -> None:
    command = Command(tmp_path, arguments(inputs, tmp_path))
    command.wait_until(lambda: n_steps(tmp_path) >= 3, "step 3", ENDS_WITHIN_S)
    os.kill(command.process.pid, signal.SIGKILL)
    command.end(ENDS_WITHIN_S)
    layouts = ["actor_gen.layout=dp2", "rew_fn.layout=dp1@1", "actor_train.layout=tp2"]
    ended = Command(tmp_path, [*arguments(inputs, tmp_path), *layouts]).end(ENDS_WITHIN_S)
    assert ended.code == 0, ended.err
    for found, expected in zip(numbers(tmp_path), numbers(undisturbed), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4), "float32 sums in another order"
