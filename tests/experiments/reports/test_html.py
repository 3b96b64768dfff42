"""`summary.html`: what a run's page shows, what it leaves out, and that nothing in a run folder can harm its reader."""

from __future__ import annotations

import json
import re
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reallm.experiments.reports.charts import bar_chart, line_chart, nice_steps
from reallm.experiments.reports.html import render, write_summary_page
from reallm.experiments.reports.number_format import number, short
from reallm.experiments.reports.sample_table import EVALUATIONS, LONGEST, PROMPTS, passage, prompt_histories
from reallm.experiments.runs.info import RunError
from tests.helpers.run_folders import write_run

NOW = datetime(2026, 1, 2, 3, 4, 5)


class Page(HTMLParser):
    """The texts of a page, with its tags checked: each is closed in order, none has or loads what could run."""

    VOID = frozenset({"meta", "path", "input"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe", "object", "form", "a", "base")
        for name, _ in attrs:
            assert not name.startswith("on")
            assert name not in ("src", "href", "action")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))


def page(folder: Path) -> str:
    return Page(render(folder, now=NOW)).text


def write_lines(path: Path, *records: dict[str, Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


# ---------------------------------------------------------------- what is shown


def test_the_page_is_one_file_without_scripts_or_anything_from_elsewhere(tmp_path):
    folder = write_run(tmp_path / "a", eval_losses={0: 4.0, 3: 2.25})
    path = write_summary_page(folder)
    html = path.read_text(encoding="utf-8")
    assert path == folder / "summary.html"
    assert html.startswith("<!doctype html>")
    assert "default-src 'none'" in html
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r"https?:|url\(|@import", html)
    Page(html)


def test_the_headline_says_what_came_out(tmp_path):
    text = page(write_run(tmp_path / "my-run", eval_losses={0: 4.0, 2: 2.0, 3: 2.25}, total_steps=500))
    assert "my-run done" in text
    assert "Training loss 1.500 from 3.000" in text
    assert "Validation loss 2.250 lowest 2.000 at step 2" in text
    assert "Steps 3 of 500, 0.3 epochs" in text
    assert "Time 1:01 20.3 s a step" in text
    assert "Tokens 300 40 samples" in text
    assert "Parameters 476K" in text
    assert "begun 2026-01-02 03:04" in text


def test_it_says_how_to_continue_and_how_to_load(tmp_path):
    folder = write_run(tmp_path / "a b", status="stopped", resumable=True, settings={"seed": 1})
    text = page(folder)
    checkpoint = folder / "checkpoints" / "step-000003"
    assert f"reallm sft 'resume={folder}'" in text
    assert f'tokenizer = AutoTokenizer.from_pretrained("{checkpoint}")' in text
    assert f"reallm generate --model '{checkpoint}'" in text
    assert f"reallm sft --config '{folder}/config.yaml' name=again" in text
    assert "seed: 1" in text


def test_the_best_checkpoint_is_the_one_to_load(tmp_path):
    best = {"metric": "eval/loss", "value": 2.0, "step": 2, "checkpoint": "checkpoints/step-000002"}
    folder = write_run(tmp_path / "a", resumable=True, best=best)
    assert f'from_pretrained("{folder}/checkpoints/step-000003")' in page(folder)  # the best one is not there
    (folder / "checkpoints" / "step-000002").mkdir()
    (folder / "checkpoints" / "step-000002" / "config.json").write_text("{}")
    text = page(folder)
    assert f'from_pretrained("{folder}/checkpoints/step-000002")' in text
    assert "eval/loss 2.000 at step 2" in text


def test_of_several_models_one_is_loaded_from_its_own_folder(tmp_path):
    folder = write_run(tmp_path / "a", resumable=True, parameters={"actor": 1000, "critic": 2000})
    checkpoint = folder / "checkpoints" / "step-000003"
    (checkpoint / "config.json").unlink()
    for role in ("actor", "critic"):
        (checkpoint / role).mkdir()
        (checkpoint / role / "config.json").write_text("{}")
    text = page(folder)
    assert f'from_pretrained("{checkpoint}/actor")' in text
    assert "Parameters 3K 1K actor, 2K critic" in text


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ({"status": "failed", "error": "loss is NaN at step 4"}, "Failed. loss is NaN at step 4"),
        ({"status": "running"}, "Killed. The process ended without a message"),
    ],
)
def test_what_went_wrong_stands_at_the_top(tmp_path, summary, expected):
    text = page(write_run(tmp_path / "a", **summary))
    assert text.index(expected) < text.index("Training loss")


def test_skipped_steps_are_mentioned_if_there_are_any(tmp_path):
    folder = write_run(tmp_path / "a")
    write_lines(folder / "metrics.jsonl", {"step": 1, "train/loss": 1, "train/skipped_steps": 0})
    assert "skipped whose gradients" not in page(folder)
    write_lines(folder / "metrics.jsonl", {"step": 1, "train/loss": 1, "train/skipped_steps": 2})
    assert "2 steps skipped whose gradients" in page(folder)


def test_each_kind_of_metric_has_a_chart_whatever_the_algorithm_calls_it(tmp_path):
    folder = write_run(tmp_path / "a")
    metrics = {"actor/loss": 1.0, "critic/loss": 2.0, "actor/lr": 1e-5, "critic/lr": 2e-5, "actor/kl": 0.1}
    write_lines(
        folder / "metrics.jsonl",
        {"step": 0, "eval/actor/loss": 3.0, "eval/critic/loss": 4.0},
        {"step": 1, **metrics, "actor/perplexity": 2.7, "actor/tokens": 5, "epoch": 0.1},
    )
    html = render(folder, now=NOW)
    titles = re.findall(r"<figcaption><h3>(.*?)</h3>", html)
    assert titles == [
        "actor loss", "critic loss", "KL divergence from the reference (nats a token)", "Learning rate"
    ]  # fmt: skip
    legends = [re.findall(r"</i>([^<]+)</span>", legend) for legend in re.findall(r'class="legend">(.*?)\n', html)]
    assert legends == [
        ["actor/loss", "eval/actor/loss"],
        ["critic/loss", "eval/critic/loss"],
        ["actor/lr", "critic/lr"],
    ]


def test_rewards_of_preferences_are_in_one_chart_and_accuracy_is_of_pairs(tmp_path):
    folder = write_run(tmp_path / "a")
    rewards = {"rewards/chosen": 1.0, "rewards/rejected": -1.0}
    dpo = {**rewards, "rewards/margins": 2.0, "rewards/accuracies": 1.0, "logps/chosen": -3.0, "logps/rejected": -9.0}
    reward_model = {**rewards, "margin": 2.0, "accuracy": 1.0}
    for metrics, expected in (
        (
            dpo,
            {
                "Rewards of chosen and rejected answers, and the margins between them": [
                    "train/rewards/chosen",
                    "train/rewards/rejected",
                    "train/rewards/margins",
                ],
                "Accuracy: share of pairs whose chosen answer has the higher reward": [],
                "Log-probabilities of chosen and rejected answers (nats)": [
                    "train/logps/chosen",
                    "train/logps/rejected",
                ],
            },
        ),
        (
            reward_model,
            {
                "Accuracy: share of pairs whose better answer has the higher score": [],
                "Rewards of chosen and rejected answers, and the margins between them": [
                    "train/rewards/chosen",
                    "train/rewards/rejected",
                    "train/margin",
                ],
            },
        ),
    ):
        write_lines(folder / "metrics.jsonl", {"step": 1, **{f"train/{name}": x for name, x in metrics.items()}})
        figures = render(folder, now=NOW).split('<figure class="chart')[1:]
        charts = {
            re.findall(r"<h3>(.*?)</h3>", figure)[0]: re.findall(r"</i>([^<]+)</span>", figure.partition("\n</fig")[0])
            for figure in figures
        }
        assert charts == expected


def test_lengths_and_what_was_cut_are_shown_for_each_split(tmp_path):
    folder = write_run(tmp_path / "a")
    data = {
        "train": {
            "report": "train.jsonl: 9 rows -> 8 samples; 3 cut to 512 tokens; 1 dropped: empty",
            "n_samples": 8,
            "lengths": {"edges": [0, 64, 128], "counts": [5, 2]},
            "counted": 7,
        },
        "valid": {"report": "valid.jsonl: 3 rows -> 3 samples", "n_samples": 3},
    }
    (folder / "data.json").write_text(json.dumps(data))
    html = render(folder, now=NOW)
    assert "64 to 128 tokens: 2" in html
    text = Page(html).text
    assert "train.jsonl: 9 rows -&gt; 8 samples" in html
    assert "3 cut to 512 tokens; 1 dropped: empty" in text
    assert "7 of 8 samples were measured" in text
    assert "valid.jsonl: 3 rows -> 3 samples" in text


def test_what_it_says_now_stands_beside_what_it_said_first(tmp_path):
    folder = write_run(tmp_path / "a")
    samples = [
        {"step": step, "id": "row 7", "prompt": "1 + 1?", "expected": " 2", "completion": said}
        for step, said in [(0, " x"), (5, " 3"), (10, "2")]
    ]
    write_lines(folder / "samples.jsonl", *samples)
    with (folder / "samples.jsonl").open("a") as file:
        file.write('{"step": 15, "id": "row')  # killed while it wrote
    text = page(folder)
    order = ["row 7", "1 + 1?", "expected", "step 10", "✓ as expected", "step 0", "1 evaluation between", "step 5"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert text.count("as expected") == 1


def test_turns_of_a_conversation_and_tool_calls_stand_apart(tmp_path):
    folder = write_run(tmp_path / "a")
    call = '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
    sample = {
        "step": 0,
        "id": "row 7",
        "prompt": "<|user|>2 + 2?<|assistant|>",
        "turns": [{"role": "system", "text": "Be brief."}, {"role": "user", "text": "2 + 2?"}],
        "expected": f"Let me add. {call}",
        "completion": call,
    }
    write_lines(folder / "samples.jsonl", sample)
    text = page(folder)
    order = [
        "system",
        "Be brief.",
        "user",
        "2 + 2?",
        "expected",
        "Let me add.",
        "calls",
        '{"name": "add"',
        "step 0",
        "calls",
    ]
    start = text.index("row 7")
    for part in order:
        assert part in text[start:]
        start = text.index(part, start) + len(part)
    assert "<tool_call>" not in text
    assert "<|user|>" not in text
    assert "nothing" not in text


def test_what_is_not_there_is_left_out(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    write_lines(folder / "metrics.jsonl", {"step": 1, "train/loss": None})
    text = page(folder)
    for part in ("Where to go", "What it says", "trained on", "Settings", "Time", "Training loss"):
        assert part not in text
    assert "Steps 1" in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a run"):
        write_summary_page(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- what could do harm


def test_samples_and_names_are_text_not_markup(tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}"
    folder = write_run(
        tmp_path / "a",
        status="failed",
        error=evil,
        algorithm=evil,
        settings={"name": evil},
        parameters={evil: 3, "b": 4},
    )
    write_lines(folder / "metrics.jsonl", {"step": 1, f"{evil}/loss": 1.0, f"eval/{evil}/loss": 1.0, f"a/{evil}": 1})
    sample = {"step": 0, "id": evil, "prompt": evil, "expected": evil, "completion": evil}
    write_lines(folder / "samples.jsonl", sample, {**sample, "step": 1})
    lengths = {"edges": [0, 1], "counts": [1]}
    (folder / "data.json").write_text(json.dumps({evil: {"report": evil, "lengths": lengths}}))
    html = render(folder, now=NOW)
    assert Page(html).text.count("{{ 7 * 7 }}") > 8
    assert "<script" not in html
    assert "<img" not in html


def test_what_no_file_can_hold_is_replaced(tmp_path):
    folder = write_run(tmp_path / "a", error="half a character: \ud83d", status="failed")
    write_lines(folder / "samples.jsonl", {"step": 0, "id": "\ud83d", "prompt": "\x00\x1b", "completion": "\udc00"})
    html = write_summary_page(folder).read_bytes().decode("utf-8")
    assert "··" in html
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", html)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
known_keys = st.sampled_from(
    [
        "status",
        "algorithm",
        "error",
        "started",
        "seconds",
        "steps",
        "total_steps",
        "epochs",
        "train_samples",
        "parameters",
        "checkpoint",
        "best",
        "metrics",
        "train",
        "valid",
        "step",
        "id",
        "prompt",
        "expected",
        "completion",
        "train/loss",
        "eval/loss",
        "train/lr",
        "train/tokens",
        "epoch",
        "a/b",
        "train/skipped_steps",
    ]
)
lengths = st.fixed_dictionaries({"lengths": st.fixed_dictionaries({"edges": json_values, "counts": json_values})})
objects = st.dictionaries(known_keys, json_values | lengths, max_size=8)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(summary=objects, data=objects, metrics=st.lists(objects, max_size=4), samples=st.lists(objects, max_size=4))
def test_whatever_the_files_hold_there_is_a_page(tmp_path, summary, data, metrics, samples):
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "data.json").write_text(json.dumps(data))
    write_lines(tmp_path / "metrics.jsonl", *({"step": i, **record} for i, record in enumerate(metrics)))
    write_lines(tmp_path / "samples.jsonl", *({"step": i, **record} for i, record in enumerate(samples)))
    Page(write_summary_page(tmp_path).read_text(encoding="utf-8"))


# ---------------------------------------------------------------- parts


def test_a_long_run_makes_no_larger_page_than_a_shorter_one(tmp_path):
    sizes = []
    for n in (5_000, 20_000):
        losses = [3.0 + (step * 7919 % 100) / 100 for step in range(n)]
        folder = write_run(tmp_path / str(n), losses=losses, eval_losses=dict.fromkeys(range(0, n, 10), 2.0))
        sizes.append(write_summary_page(folder).stat().st_size)
    assert sizes[1] < 1.1 * sizes[0]
    assert sizes[1] < 200_000


def test_many_prompts_and_evaluations_are_not_all_shown():
    records = [
        {"step": step, "id": str(name), "prompt": f"prompt {name}", "completion": "x"}
        for step in range(0, 1000, 10)
        for name in range(PROMPTS + 5)
    ]
    found = prompt_histories(records)
    assert [one.id for one in found] == [str(name) for name in range(PROMPTS)]
    assert found[0].latest.step == 990
    assert found[0].first is not None
    assert found[0].first.step == 0
    assert len(found[0].between) == EVALUATIONS - 2
    assert len(found[0].between) + found[0].n_omitted == 98


@settings(deadline=None)
@given(st.text(max_size=2000))
def test_a_folded_text_is_all_there(text):
    found = passage(text)
    assert len(found.visible + found.folded) == len(text)
    assert all(a in (b, "·") for a, b in zip(found.visible + found.folded, text, strict=True))


def test_long_texts_are_folded_and_endless_ones_cut():
    assert passage("short").folded == ""
    assert passage("word " * 200).visible.endswith(" ")
    assert passage("line\n" * 200).visible == "line\n" * 10
    endless = passage("x" * (LONGEST + 1))
    assert len(endless.visible + endless.folded) == LONGEST
    assert endless.length == LONGEST + 1


@settings(deadline=None)
@given(a=st.floats(-1e12, 1e12), b=st.floats(-1e12, 1e12), n=st.integers(2, 8))
def test_axis_labels_are_round_and_hold_the_curve(a, b, n):
    low, high = min(a, b), max(a, b)
    steps = nice_steps(low, high, n)
    assert 2 <= len(steps) <= n + 3
    slack = 1e-6 * (steps[1] - steps[0])
    assert steps[0] <= low + slack
    assert steps[-1] >= high - slack
    assert steps == sorted(set(steps))


def test_axis_labels_have_the_digits_they_need():
    chart = line_chart("lr", {"train/lr": [(0, 0.0), (100, 3e-5)]})
    assert [tick.text for tick in chart.y_ticks] == ["0", "1e-05", "2e-05", "3e-05"]
    chart = line_chart("loss", {"train/loss": [(0, 1.21), (100, 1.29)]})
    assert [tick.text for tick in chart.y_ticks] == ["1.20", "1.22", "1.24", "1.26", "1.28", "1.30"]


def test_a_chart_can_be_read_off_where_evaluations_are():
    train = [(step, float(step)) for step in range(1, 1001)]
    chart = line_chart("loss", {"train/loss": train, "eval/loss": [(0, 9.0), (333, 8.0), (1000, 7.0)]})
    values = {reading.title: [text for _, _, text in reading.values] for reading in chart.readings}
    assert values["step 0"] == ["9.000"]
    assert values["step 333"] == ["333.0", "8.000"]
    assert values["step 1,000"] == ["1,000", "7.000"]
    assert 70 <= len(values) <= 80
    assert sum(reading.width for reading in chart.readings) == pytest.approx(1000, abs=10)


def test_places_in_a_chart_are_permille_from_the_top_left():
    chart = line_chart("loss", {"train/loss": [(0, 4.0), (5, 2.0), (10, 0.0)]})
    assert chart.lines[0].path == "M0 0L500 500L1000 1000"
    bars = bar_chart([0, 10, 20], [1, 4], "tokens")
    assert [bar.height for bar in bars.bars] == [250, 1000]
    assert bar_chart([0, 10], [0], "tokens").bars[0].height == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.75, "1.750"), (3, "3"), (12345.6, "12,346"), (2.28e-6, "2.28e-06"), (1.2e9, "1.2e+09"), (0.0, "0"),
     (float("nan"), "nan"), (-0.5, "-0.5000")],
)  # fmt: skip
def test_numbers_have_four_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(950, "950"), (999.9, "1K"), (12345, "12.3K"), (999_999, "1M"), (1.24e9, "1.24B"), (3e12, "3T"), (0.5, "0.5")],
)
def test_counts_are_short(value, text):
    assert short(value) == text
