"""Messages are one line; what is suggested for a misspelt name, and what is not."""

from __future__ import annotations

import pytest

from reallm.errors import DataError, NoSamplesError, ReallmError, close_matches, nearest


@pytest.mark.parametrize("error", [ReallmError, DataError, NoSamplesError])
def test_a_message_is_one_line_whatever_it_quotes(error: type[ReallmError]) -> None:
    assert str(error("no column 'a\nb\x1b[2J', it has 'c'")) == r"no column 'a\nb\x1b[2J', it has 'c'"
    assert str(error(str(error("a\n")))) == r"a\n"


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("lama", ["llama", "mistral"], "llama"),
        ("stf", ["sft", "demo"], "sft"),
        ("bf16", ["float32", "bfloat16", "float16"], "bfloat16"),
        ("cosinus", ["cosine", "linear", "constant"], "cosine"),
        ("trian.jsonl", ["train.jsonl", "valid.jsonl"], "train.jsonl"),
        ("base_model", ["best_mode", "best_metric"], None),
        ("r", ["lr"], None),
        ("gpu", ["cpu", "cuda"], None),
        ("", ["a"], None),
    ],
)
def test_only_what_is_near_is_suggested(name: str, options: list[str], expected: str | None) -> None:
    assert nearest(name, options) == expected


def test_at_most_three_and_the_nearest_first() -> None:
    assert close_matches("beta", ["beta1", "beta2", "eps"]) == ["beta1", "beta2"]
    assert close_matches("save_ever", ["save_every_step", "save_every", "save_evers", "save_even"]) == [
        "save_every",
        "save_evers",
        "save_even",
    ]
