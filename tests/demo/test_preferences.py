"""`reallm demo --algorithm rw` and `dpo`, in full length: that models learn the demo's preferences."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import transformers
from rich.console import Console

from reallm.demo import friendliness, grpo, ppo
from reallm.demo.preference_rows import is_friendly, mixed_answers, preference_rows
from reallm.demo.run import run_demo
from reallm.errors import ConfigError


def test_a_reward_model_tells_friendly_answers_from_grumpy_ones(tmp_path: Path) -> None:
    printed = io.StringIO()
    result = run_demo(tmp_path, algorithm="rw", console=Console(file=printed, width=100))
    output = printed.getvalue()
    assert result.metrics["eval/accuracy"] >= 0.95
    for expected in (
        "Of 256 pairs", "train/accuracy", f"its curves: {result.run_dir / 'summary.html'}", "--algorithm dpo",
        f'AutoModelForSequenceClassification.from_pretrained("{result.checkpoint}")',
    ):  # fmt: skip
        assert expected in output, expected
    assert "reallm generate" not in output  # it has scores, no text
    page = (result.run_dir / "summary.html").read_text(encoding="utf-8")
    assert "Accuracy: share of pairs whose better answer has the higher score" in page
    assert "Rewards of chosen and rejected answers" in page
    assert "reallm generate" not in page
    assert result.checkpoint is not None
    model = transformers.AutoModelForSequenceClassification.from_pretrained(result.checkpoint)
    assert model.config.num_labels == 1


def test_dpo_makes_a_model_friendly(tmp_path: Path) -> None:
    printed = io.StringIO()
    result = run_demo(tmp_path, algorithm="dpo", console=Console(file=printed, width=100))
    output = printed.getvalue()
    shares = re.search(r"Friendly answers to 256 requests .*: ([\d.]+)% before DPO, ([\d.]+)% after", output)
    assert shares is not None
    before, after = map(float, shares.groups())
    assert 35 <= before <= 65
    assert after >= 90
    assert result.metrics["eval/rewards/accuracies"] >= 0.95
    page = result.run_dir / "summary.html"
    for expected in (
        "1 of 2",
        "2 of 2",
        "What it says",
        f"its curves: {page}",
        f"reallm generate --model {result.checkpoint}",
    ):
        assert expected in output, expected
    assert "Once upon a time" not in output
    assert "Can you" in page.read_text(encoding="utf-8")  # samples of the evaluations


@pytest.mark.parametrize(("name", "meant"), [("dp", "dpo"), ("sftt", "sft")])
def test_an_algorithm_without_a_demo(tmp_path: Path, name: str, meant: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"--algorithm {name}: there are demos of sft, rw, dpo, ppo, grpo; did you mean '{meant}'\?"
    ):
        run_demo(tmp_path, algorithm=name)
    assert list(tmp_path.iterdir()) == []


def test_rows_are_the_same_every_time_and_ask_for_other_things_than_the_held_out_ones() -> None:
    rows = preference_rows(1)
    assert rows == preference_rows(1)
    assert rows != preference_rows(2)
    trained = {row["prompt"].split()[-1] for row in rows.train}
    assert not trained & {row["prompt"].split()[-1] for row in rows.valid}
    assert all(is_friendly(row["chosen"]) and not is_friendly(row["rejected"]) for row in rows.train)
    friendly = [is_friendly(row["answer"]) for row in mixed_answers(rows.train)]
    assert 2 * sum(friendly) == len(friendly)


@pytest.mark.parametrize(("algorithm", "n_stages"), [("grpo", 2), ("ppo", 3)])
def test_rewards_make_a_model_friendlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, n_stages: int
) -> None:
    """In fewer steps than the demo itself, which gets further."""
    printed = io.StringIO()
    monkeypatch.setattr(friendliness, "SFT_STEPS", 120)
    monkeypatch.setattr({"grpo": grpo, "ppo": ppo}[algorithm], "STEPS", 12)
    result = run_demo(tmp_path, algorithm=algorithm, console=Console(file=printed, width=100))
    output = printed.getvalue()
    name = algorithm.upper()
    shares = re.search(rf"Friendly answers to 256 requests .*: ([\d.]+)% before {name}, ([\d.]+)% after", output)
    assert shares is not None
    before, after = map(float, shares.groups())
    assert 20 <= before <= 65
    assert after >= before + 15
    page = result.run_dir / "summary.html"
    for expected in (
        f"{n_stages} of {n_stages}",
        "What it says",
        f"its curves: {page}",
        f"KL divergence from the model before {name}",
        f"reallm {algorithm} --config {result.run_dir / 'config.yaml'}",
    ):
        assert expected in output, expected
    assert page.is_file()
