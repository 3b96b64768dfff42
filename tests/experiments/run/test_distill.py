"""Runs of `reallm distill` on tiny models: what they learn, what they report, and how they resume."""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from reallm.algorithms.distill.config import DistillConfig
from reallm.config.args import ModelArgs, SamplingArgs
from reallm.config.optimizer import OptimizerConfig
from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError
from reallm.experiments.run.runner import RunResult, run
from reallm.plugins import registry
from tests.experiments.checkpointing.test_resume import assert_same_run, stop_after
from tests.experiments.conftest import HF_CONFIG, records
from tests.helpers.tokenizers import tiny_tokenizer


@dataclass
class Runs:
    """Configurations of small runs, and the runs."""

    folder: Path
    student: Path

    def config(self, *, on_policy: bool = False, **changes: Any) -> DistillConfig:
        """Rows, or prompts, of two words; the teacher is a model of its own."""
        rows = [{"prompt": f"Say {i}:", "answer": " red blue"} for i in range(8)]
        path = self.folder / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        dataset = registry.get("dataset", "prompt" if on_policy else "prompt_answer").config_class()(
            train_path=str(path), valid_path=str(path), train_bs_n_seqs=4, valid_bs_n_seqs=8
        )
        settings: dict[str, Any] = {
            "actor": ModelArgs(path=str(self.student), device="cpu"),
            "teacher": ModelArgs(path=str(self.teacher()), device="cpu"),
            "dataset": dataset,
            "gen": SamplingArgs(max_new_tokens=6) if on_policy else SamplingArgs(),
            "top_k": 8,
            "optimizer": OptimizerConfig(lr=1e-2),
            "eval_generations": 0,
            "loggers": ["jsonl"],
            "output_dir": str(self.folder / "runs"),
        }
        return DistillConfig(on_policy=on_policy, **{**settings, **changes})

    def teacher(self) -> Path:
        folder = self.folder / "teacher"
        if not folder.exists():
            teacher = ReaLModel.from_llama({**HF_CONFIG, "initializer_range": 0.5}, seed=99)
            teacher.save_pretrained(folder, tokenizer=tiny_tokenizer())
        return folder

    def run(self, config: DistillConfig) -> RunResult:
        return run(config, "distill", name="distill", console=Console(file=io.StringIO()))


@pytest.fixture
def distill(tmp_path: Path, checkpoint: Path) -> Runs:
    return Runs(tmp_path, checkpoint)


def test_the_student_comes_nearer_to_its_teacher_on_rows(distill: Runs) -> None:
    found = records(distill.run(distill.config(epochs=6)))
    before, after = (entry["eval/loss"] for entry in (found[0], found[-1]))
    assert after < 0.7 * before
    assert found[1]["train/loss_tokens"] > 0


def test_the_student_comes_nearer_to_its_teacher_on_its_own_answers(distill: Runs) -> None:
    optimizer = OptimizerConfig(lr=3e-2)
    found = records(
        distill.run(distill.config(on_policy=True, num_generations=2, top_k=None, epochs=8, optimizer=optimizer))
    )
    measured = [entry["eval/kl"] for entry in found if "eval/kl" in entry]
    assert measured[-1] < measured[0] - 1  # nats a token
    assert {"train/kl", "train/divergence", "train/top_k_mass"} <= found[1].keys()


def test_the_students_answers_are_kept_and_shown(distill: Runs) -> None:
    result = distill.run(distill.config(on_policy=True, max_steps=1, keep_rollouts=2))
    kept = [json.loads(line) for line in (result.run_dir / "rollouts.jsonl").read_bytes().splitlines()]
    assert [record["step"] for record in kept] == [1, 1]
    for answer in (answer for record in kept for answer in record["answers"]):
        assert len(answer["logprobs"]) == len(answer["kl"]) == answer["length"]
        assert (answer["reward"], answer["advantage"], answer["advantages"]) == (None, None, None)
    page = (result.run_dir / "summary.html").read_text(encoding="utf-8")
    assert "log-probability" in page
    assert "KL" in page


@pytest.mark.parametrize(
    "form", [{}, {"on_policy": True}, {"on_policy": True, "policy_gradient": True, "top_k": 64, "async_steps": 1}]
)
def test_a_stopped_run_goes_on_bit_for_bit(
    distill: Runs, monkeypatch: pytest.MonkeyPatch, form: dict[str, Any]
) -> None:
    settings: dict[str, Any] = {**form, "epochs": 2, "max_steps": 3}
    whole = distill.run(distill.config(name="whole", **settings))
    with monkeypatch.context() as patch:
        stop_after(patch, 1, metric="train/loss")
        stopped = distill.run(distill.config(name="stopped", **settings))
    assert stopped.interrupted
    distill.run(dataclasses.replace(distill.config(name="stopped", **settings), resume="stopped"))
    assert_same_run(whole.run_dir, stopped.run_dir)


def test_a_teacher_of_another_vocabulary_is_refused(distill: Runs) -> None:
    config = distill.config()
    file = distill.teacher() / "tokenizer.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    vocabulary = raw["model"]["vocab"]
    first, second = list(vocabulary)[5:7]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^teacher\.path=") as found:
        distill.run(config)
    assert "\n" not in str(found.value)
