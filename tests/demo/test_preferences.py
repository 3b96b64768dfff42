"""`reallm demo` of preferences and rewards: what it makes and shows, in a few steps.

That models learn in full length is for an environment of its own, `demos`.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
import transformers
from rich.console import Console

from reallm.demo.preference_rows import is_friendly, mixed_answers, preference_rows
from reallm.demo.run import run_demo
from reallm.errors import ConfigError


@pytest.fixture
def few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of the rows, with sixteen requests to evaluate on."""
    monkeypatch.setattr("reallm.demo.preference_rows.VERBS", ("fix",))
    monkeypatch.setattr("reallm.demo.preference_rows.N_HELD_OUT_WORDS", 16)


@pytest.mark.usefixtures("few_rows")
def test_the_demo_of_a_reward_model(tmp_path: Path) -> None:
    printed = io.StringIO()
    result = run_demo(tmp_path, steps=2, algorithm="rw", console=Console(file=printed, width=100))
    output = printed.getvalue()
    for expected in (
        "Of 16 pairs", "train/accuracy", f"its curves: {result.run_dir / 'summary.html'}", "--algorithm dpo",
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


@pytest.mark.usefixtures("few_rows")
@pytest.mark.parametrize(("algorithm", "n_stages"), [("dpo", 2), ("grpo", 2), ("ppo", 3)])
def test_a_demo_of_several_stages(tmp_path: Path, algorithm: str, n_stages: int) -> None:
    printed = io.StringIO()
    result = run_demo(tmp_path, steps=2, algorithm=algorithm, console=Console(file=printed, width=100))
    output = printed.getvalue()
    name = algorithm.upper()
    assert re.search(rf"Friendly answers to 16 requests .*: [\d.]+% before {name}, [\d.]+% after", output)
    page = result.run_dir / "summary.html"
    policy = result.checkpoint / "actor" if algorithm == "ppo" and result.checkpoint else result.checkpoint
    for expected in (
        *(f"{stage} of {n_stages}" for stage in range(1, n_stages + 1)),
        "What it says",
        f"its curves: {page}",
        f"reallm generate --model {policy}",
        f"reallm {algorithm} --config {result.run_dir / 'config.yaml'}",
    ):
        assert expected in output, expected
    assert ("KL divergence from the model before" in output) == (algorithm != "dpo")
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
