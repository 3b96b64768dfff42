"""Each check of the kit for rewards finds what it is for, and finds no fault with what is right."""

from __future__ import annotations

import itertools

import pytest

from reallm.specs import RewardSpec
from reallm_devkit import check_reward


def right(completions, answer, **columns):
    return [
        None if one is None else float(str(one) in str(text)) for text, one in zip(completions, answer, strict=True)
    ]


def too_few(completions, **columns):
    return [0.0] * (len(completions) - 1)


def not_finite(completions, **columns):
    return [float("nan") for _ in completions]


def text(completions, **columns):
    return ["good" for _ in completions]


def only_text(completions, **columns):
    return [float(len(completion)) for completion in completions]


def only_its_columns(completions, **columns):
    return [float(len(columns)) for _ in completions]


COUNT = itertools.count()


def counting(completions, **columns):
    return [float(next(COUNT)) for _ in completions]


def by_position(completions, **columns):
    return [float(i) for i in range(len(completions))]


def changing(completions, **columns):
    completions.sort(key=str)
    return [0.0 for _ in completions]


@pytest.mark.parametrize(
    ("function", "failed"),
    [
        (too_few, "values"),
        (not_finite, "values"),
        (text, "values"),
        (only_text, "messages"),
        (only_its_columns, "other-columns"),
        (counting, "same-twice"),
        (by_position, "order"),
        (changing, "inputs"),
        (right, "columns"),
    ],
)
def test_what_is_broken_is_found(function, failed):
    report = check_reward(RewardSpec(function, "made to fail"))
    assert failed in [result.check for result in report.failed]


def test_a_right_one_passes():
    assert check_reward(RewardSpec(right, "contains the answer", columns=("answer",))).passed
