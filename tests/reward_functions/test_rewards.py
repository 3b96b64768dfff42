"""Rewards of completions, as text and as messages."""

from __future__ import annotations

import pytest

from reallm.errors import DataError
from reallm_rewards.exact_match import exact_match
from reallm_rewards.format import format
from reallm_rewards.length import length
from reallm_rewards.math import math
from reallm_rewards.number_match import number_match


def message(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize("form", [str, message])
def test_exact_match_compares_what_is_given_as_the_answer(form):
    completions = [form(text) for text in (" Paris\n", "I think <answer>Paris</answer>", "paris", "", "7")]
    assert exact_match(completions, ["Paris"] * 4 + [7], other=[1] * 5) == [1, 1, 0, 0, 1]
    assert exact_match(completions, ["PARIS!"] * 5, ignore_case=True, ignore_punctuation=True) == [1, 1, 1, 0, 0]


def test_exact_match_takes_several_references_and_none():
    assert exact_match(["b", "c", "b"], [["a", "b"], ["a", "b"], None]) == [1, 0, None]
    with pytest.raises(DataError, match="column 'answer': found a dict, wanted text or a number"):
        exact_match(["b"], [{"value": "b"}])


@pytest.mark.parametrize("form", [str, message])
def test_number_match_compares_values(form):
    completions = [form(text) for text in ("so 1,000.0", "0.5", "-0", "none", "")]
    answers = ["long division #### 1000", r"\frac{1}{2}", 0, 3, "3"]
    assert number_match(completions, answers) == [1, 1, 1, 0, 0]
    assert number_match(["3.14", "3.2"], ["3.1416"] * 2, tolerance=0.01) == [1, 0]
    assert number_match(["3", "3"], [None, "no number"]) == [None, None]


@pytest.mark.parametrize("form", [str, message])
def test_format_matches_the_whole_completion(form):
    texts = [
        "<think>so\nit is</think>\n<answer>4</answer>\n",
        "<think>so</think> 4",
        "<think>a</think><answer>4</answer><answer>5</answer>",
        "",
    ]
    completions = [form(text) for text in texts]
    assert format(completions) == [1, 0, 0, 0]
    assert format(completions[:3], pattern=[".*4", ".*4", None]) == [0, 1, None]
    with pytest.raises(DataError, match=r"pattern '\(': not a regular expression: missing \)"):
        format(completions, pattern="(")


def test_length_falls_on_both_sides_of_the_wanted_one():
    ids = [[0] * n for n in (4, 2, 6, 8, 100, 0)]
    assert length(completion_ids=ids, wanted_length=4) == [1, 0.5, 0.5, 0, 0, 0]
    assert length(completion_ids=ids[:2], wanted_length=[2, None]) == [0, None]
    with pytest.raises(DataError, match="wanted_length: found 0, wanted a number of tokens, at least 1"):
        length(completion_ids=ids, wanted_length=0)
    with pytest.raises(DataError, match="wanted_length has 1 values for 6 completions"):
        length(completion_ids=ids, wanted_length=[3])


@pytest.mark.parametrize("form", [str, message])
def test_math_compares_expressions(form):
    texts = [r"It is \boxed{\frac{1}{2}}.", "<answer>0.5</answer>", "so $x + 1$", "12", "", "#"]
    answers = ["1/2", r"\frac{1}{2}", "1+x", "work\n#### 12", "1", "1"]
    assert math([form(text) for text in texts], answers) == [1, 1, 1, 1, 0, 0]
    assert math([form("2")], [None]) == [None]
