"""The four datasets keep all promises that the conformance kit knows, whatever form their rows have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reallm_devkit import DatasetKit, check_dataset
from tests.helpers.tokenizers import tiny_tokenizer

QUESTIONS = [{"prompt": f"What is {i} and {i}?", "answer": f" {2 * i}, of course."} for i in range(7)]
CHATS = [
    {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["answer"]}]}
    for row in QUESTIONS
]
PAIRS = [
    {"id": i, "prompt": "Say a number.", "pos_answers": ["one", "two", "three"], "neg_answers": ["a", "b", f"c{i}"]}
    for i in range(7)
]
PREFERENCES = [{"prompt": "Count.", "chosen": f"1, 2, {i}", "rejected": "no"} for i in range(5)]
LABELLED = [
    {"prompt": f"Say {i}.", "completion": " one" if i % 2 else f" {i}", "label": bool(i % 2), "id": f"row {i}"}
    for i in range(7)
]


class TestPromptAnswer(DatasetKit):
    dataset = "prompt_answer"
    rows = QUESTIONS
    tokenizer = tiny_tokenizer()


class TestPairedComparison(DatasetKit):
    dataset = "rw_pair"
    rows = PAIRS
    tokenizer = tiny_tokenizer()


class TestUnpairedPreference(DatasetKit):
    dataset = "unpaired_preference"
    rows = LABELLED
    tokenizer = tiny_tokenizer()


class TestPrompt(DatasetKit):
    dataset = "prompt"
    rows = QUESTIONS
    tokenizer = tiny_tokenizer()


@pytest.mark.parametrize(
    ("dataset", "rows", "config"),
    [
        ("prompt_answer", CHATS, {}),
        ("prompt_answer", QUESTIONS, {"max_seqlen": 64, "pad_to_max_length": True}),
        ("prompt_answer", QUESTIONS, {"max_seqlen": 24, "overlong": "truncate"}),
        ("rw_pair", PREFERENCES, {}),
        ("rw_pair", PAIRS, {"max_pairs_per_prompt": 3}),
        ("rw_pair", [{**row, "margin": 0.5} for row in PREFERENCES], {}),
        ("unpaired_preference", LABELLED, {"max_seqlen": 8}),
        ("unpaired_preference", PREFERENCES, {}),
        ("unpaired_preference", [{**row, "label": True} for row in CHATS], {}),
        ("prompt", QUESTIONS, {"max_prompt_len": 64, "pad_to_max_length": True}),
        ("prompt", [{"prompt": row["messages"][:1], "answer": "2", "n": [i]} for i, row in enumerate(CHATS)], {}),
    ],
)
def test_each_form_of_their_rows_and_each_way_of_making_samples(
    dataset: str, rows: list[dict[str, Any]], config: dict[str, Any]
) -> None:
    slow = {"another-process": "the classes above have it", "light-import": "the classes above have it"}
    found = check_dataset(dataset, config=config, rows=rows, tokenizer=tiny_tokenizer(), skip=slow)
    assert found.passed, str(found)
    assert next(result.status for result in found.results if result.check == "keys") == "passed"
    assert found.counts["skipped"] == len(slow), str(found)


def test_rows_in_a_list(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(QUESTIONS, indent=1), encoding="utf-8")
    slow = {"another-process": "the classes above have it", "light-import": "the classes above have it"}
    found = check_dataset("prompt_answer", config={"train_path": path}, tokenizer=tiny_tokenizer(), skip=slow)
    assert found.passed, str(found)
