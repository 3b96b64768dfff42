"""A rank that hangs or dies in a call: the job ends in time, with a line that names call, rank and what was awaited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.jobs import as_under_srun, make_inputs

PROGRAM = """
import os, sys, time
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
HANGS, DIES = "time.sleep(1000)", "os._exit(9)"
TIMEOUT_S = 6
ENDS_WITHIN_S = 60.0


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_inputs(tmp_path_factory.mktemp("inputs"))
    rows = [{"prompt": f"Say {n}:", "chosen": " red sea", "rejected": " old tea"} for n in range(8)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def errors(inputs: Path, folder: Path, what: str) -> list[str]:
    """The lines of all ranks, of which the last computes the reference."""
    arguments = [
        "dpo", f"actor.path={inputs / 'model'}", "actor.device=cpu", "ref.device=cpu", "ref_logprobs=live",
        f"dataset.train_path={inputs / 'pairs.jsonl'}", "dataset.train_bs_n_seqs=2", f"output_dir={folder}", "name=run",
        "loggers=[jsonl]", f"parallel.timeout_s={TIMEOUT_S}", "ref_inf.layout=dp1@1", "actor_train.layout=dp1@0",
    ]  # fmt: skip
    commands = as_under_srun(folder, [arguments] * 2, PROGRAM.format(what=what))
    ended = commands[0].end(ENDS_WITHIN_S)
    commands[1].process.kill()
    assert ended.code == 2
    return [line for line in [*ended.errors, *commands[1].end().errors] if line.startswith("error: ")]


def test_a_rank_that_hangs_is_named_with_what_it_should_send(inputs: Path, tmp_path: Path) -> None:
    (line,) = errors(inputs, tmp_path, HANGS)
    assert line.startswith(
        f"error: rank 0 waited {TIMEOUT_S} s in call 'actor_train' for 'ref_logprobs' of 'ref_inf' from rank 1"
    )
    assert "in call 'ref_inf'" in line


def test_a_rank_that_dies_is_named_with_what_it_should_send(inputs: Path, tmp_path: Path) -> None:
    (line,) = errors(inputs, tmp_path, DIES)
    assert line.startswith("error: rank 0 lost rank 1")
    assert "in call 'actor_train' for 'ref_logprobs' of 'ref_inf' from rank 1" in line
