"""A rank that hangs, is stopped or dies in a call beside others: the job ends in time, with a line that names call,
rank and what was awaited, and goes on under another plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.jobs import as_under_srun, make_inputs, side_by_side

PROGRAM = """
import os, signal, sys, time
from reallm.algorithms.dpo import interface
from reallm.cli.main import main
score = interface.ReferenceInterface.inference
def inference(self, model, batch, context):
    if context.training and context.step == 2:
        {what}
    return score(self, model, batch, context)
interface.ReferenceInterface.inference = inference
main()
"""
HANGS, STOPS = "time.sleep(1000)", "os.kill(os.getpid(), signal.SIGSTOP)"
DIES, IS_KILLED = "os._exit(9)", "os.kill(os.getpid(), signal.SIGKILL)"
REFERENCE_ON_RANK_1 = ("ref_inf.layout=dp1@1", "actor_train.layout=dp1@0")
TIMEOUT_S = 6
ENDS_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    rows = [{"prompt": f"Say {n}:", "chosen": " red sea", "rejected": " old tea"} for n in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def arguments(inputs: Path, folder: Path, *others: str) -> list[str]:
    return [
        "dpo", f"actor.path={inputs / 'model'}", "actor.device=cpu", "ref.device=cpu", "ref_logprobs=live",
        f"dataset.train_path={inputs / 'pairs.jsonl'}", "dataset.train_bs_n_seqs=2", f"output_dir={folder}", "name=run",
        "loggers=[jsonl]", "save_every=1", f"parallel.timeout_s={TIMEOUT_S}", *others,
    ]  # fmt: skip


def errors(inputs: Path, folder: Path, what: str) -> list[str]:
    """The lines of all ranks, of which the last computes the reference."""
    of_each = arguments(inputs, folder, *REFERENCE_ON_RANK_1)
    commands = as_under_srun(folder, [of_each] * 2, PROGRAM.format(what=what))
    ended = commands[0].end(ENDS_WITHIN_S)
    commands[1].process.kill()
    assert ended.code == 2
    return [line for line in [*ended.errors, *commands[1].end().errors] if line.startswith("error: ")]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["train/loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("what", [HANGS, STOPS])
def test_a_rank_that_does_not_go_on_is_named_with_what_it_should_send(inputs: Path, tmp_path: Path, what: str) -> None:
    (line,) = errors(inputs, tmp_path, what)
    assert line.startswith(
        f"error: rank 0 waited {TIMEOUT_S} s in call 'actor_train' for 'ref_logprobs' of 'ref_inf' from rank 1"
    )
    assert "in call 'ref_inf'" in line


@pytest.mark.parametrize("what", [DIES, IS_KILLED])
def test_a_rank_that_ends_is_named_with_what_it_should_send(inputs: Path, tmp_path: Path, what: str) -> None:
    (line,) = errors(inputs, tmp_path, what)
    assert line.startswith("error: rank 0 lost rank 1")
    assert "in call 'actor_train' for 'ref_logprobs' of 'ref_inf' from rank 1" in line


def test_the_run_goes_on_under_another_plan(inputs: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "stopped", tmp_path / "whole"):
        folder.mkdir()
    errors(inputs, tmp_path / "stopped", STOPS)
    other = ["dpo", f"resume={tmp_path / 'stopped' / 'run'}", "ref_inf.layout=dp1@0", "actor_train.layout=dp2"]
    resumed = side_by_side(tmp_path / "stopped", [other] * 2)
    whole = side_by_side(tmp_path / "whole", [arguments(inputs, tmp_path / "whole", *REFERENCE_ON_RANK_1)] * 2)
    assert [ended.code for ended in (*resumed, *whole)] == [0] * 4, [ended.err for ended in (*resumed, *whole)]
    assert "execution plan: changed" in resumed[0].out
    expected = losses(tmp_path / "whole")
    assert losses(tmp_path / "stopped") == pytest.approx(expected, rel=1e-4), "float32 sums in another order"
