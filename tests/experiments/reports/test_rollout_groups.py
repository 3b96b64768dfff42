"""The rollouts on the page of a run."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from reallm.experiments.reports.html import render
from reallm.experiments.reports.rollout_groups import PROMPTS, STEPS, TOKENS, shown_steps
from reallm.experiments.runs.rollouts import write_rollouts
from tests.experiments.reports.test_html import NOW, Page
from tests.helpers.run_folders import write_run

EVIL = "</span><script>alert(1)</script>\"'\x1b\ud83d"


def answer(n_tokens: int = 2, text: str = "x", **changes: Any) -> dict[str, Any]:
    numbers = {"logprobs": -0.5, "difference": 0.02, "kl": None, "advantages": -1.5}
    return {
        "text": text * n_tokens,
        "reward": 0.25,
        "reward_parts": {"accuracy": 0.25, "format": None},
        "length": n_tokens,
        "ended_by": "length",
        "advantage": -1.5,
        "tokens": [text] * n_tokens,
        **{name: [value] * n_tokens for name, value in numbers.items()},
        "mask": [False, *[True] * (n_tokens - 1)],
        **changes,
    }


def record(step: int, *answers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"step": step, "id": "row 0", "prompt": "Say x", "no_variance": False, "answers": list(answers), **changes}


def test_answers_are_side_by_side_with_rewards_lengths_and_the_numbers_of_their_tokens(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    unknown = answer(reward=None, reward_parts={}, difference=None, advantage=None, ended_by="<|im_end|>")
    write_rollouts(folder / "rollouts.jsonl", {"train": [record(3, answer(), unknown, no_variance=True)]})
    page = render(folder, now=NOW)
    text = Page(page).text
    assert "step 3 · mean reward 0.2500" in text
    assert "no variance: all rewards are equal" in text
    assert "reward 0.2500 accuracy 0.2500, format none 2 tokens, cut at the longest length, advantage -1.500" in text
    assert "2 tokens, ended by <|im_end|>" in text
    titles = [html.unescape(title) for title in re.findall(r'title="(log-[^"]*)"', page)]
    assert titles[:2] == [
        "log-probability -0.5000, difference to training 0.02000, advantage -1.500, not trained",
        "log-probability -0.5000, difference to training 0.02000, advantage -1.500",
    ]
    assert '<span class="m n" style="--l:8;--d:15;--a:56"' in page


def test_nothing_that_a_model_says_can_harm_the_reader(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    said = answer(3, EVIL, ended_by=EVIL, reward_parts={EVIL: 1.0, "b": 2.0})
    write_rollouts(folder / "rollouts.jsonl", {"train": [record(1, said, id=EVIL, prompt=EVIL)]})
    Page(render(folder, now=NOW))


def test_the_page_stays_small_however_long_the_run(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    for step in range(1, 101):
        write_rollouts(file, {"train": [record(step, answer(500)) for _ in range(5)]})
    with file.open("a") as opened:
        opened.write('{"step": 101, "ans')
    shown = shown_steps(file)
    assert (len(shown), shown[0].step, shown[-1].step) == (STEPS, 1, 100)
    assert len(shown[0].groups) == PROMPTS
    (one,) = shown[0].groups[0].answers
    assert (len(one.tokens), one.n_omitted) == (TOKENS, 500 - TOKENS)


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 2, nothing}',
        '{"step": 2}',
        '{"step": 2, "answers": 5, "id": "", "prompt": "", "no_variance": 0}',
        '{"step": 2, "x": ' + "[" * 200 + "]" * 200 + "}",
        json.dumps(record(2, answer(reward_parts=[]))),
    ],
)
def test_records_that_are_damaged_are_left_out(tmp_path: Path, line: str) -> None:
    folder = write_run(tmp_path / "a")
    write_rollouts(folder / "rollouts.jsonl", {"train": [record(1, answer()), record(2, answer())]})
    with (folder / "rollouts.jsonl").open("a") as opened:
        opened.write(f"{line}\n" + line.replace('"step": 2', '"step": 3') + "\n")
    assert [(step.step, len(step.groups)) for step in shown_steps(folder / "rollouts.jsonl")] == [(1, 1), (2, 1)]
    Page(render(folder, now=NOW))


def test_without_rollouts_there_is_no_section(tmp_path: Path) -> None:
    assert "Rollouts" not in Page(render(write_run(tmp_path / "a"), now=NOW)).text
