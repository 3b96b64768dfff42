"""Outputs that are not finite are refused by call, key and sample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from reallm.algorithms.finite_outputs import check_finite
from reallm.data.namedarray import NamedArray, from_dict
from reallm.errors import NonFiniteError
from reallm.specs import ModelFunctionCall

REWARD = ModelFunctionCall("score", "judge", "reward", ("ids",), ("rewards",))
NAMES = ["a", "b", "c"]
SEQLENS = {"rewards": [[2], [1, 1], [3]]}


def check(value: Any, call: ModelFunctionCall = REWARD, read: tuple[str, ...] = ("rewards",)) -> None:
    outputs = from_dict({"rewards": value})
    check_finite(call, outputs if value is None else outputs.with_metadata(seqlens=SEQLENS), read, NAMES)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_the_sample_is_named(number: float) -> None:
    rewards = torch.arange(7.0)
    rewards[3] = number
    with pytest.raises(
        NonFiniteError,
        match=rf"^the call 'score' gives {number} as 'rewards' for b, and nothing can be trained with it; look at what "
        "the reward function makes of it$",
    ):
        check(rewards)


def test_other_samples_are_counted() -> None:
    rewards = torch.arange(7.0)
    rewards[[2, 4, 6]] = math.nan
    inference = ModelFunctionCall("ref_inf", "ref", "inference", ("ids",), ("rewards",))
    with pytest.raises(NonFiniteError, match=r"for b and 1 other sample, .* what the model of ref makes of it$"):
        check(rewards, inference)


def test_nested_and_numpy_fields_and_those_with_more_dims_are_checked() -> None:
    values = np.zeros((7, 2), np.float64)
    values[6, 1] = math.nan
    with pytest.raises(NonFiniteError, match=r"gives nan as 'rewards.inner' for c,"):
        check({"inner": values})


def test_what_training_does_not_read_and_what_has_no_numbers_may_be_anything() -> None:
    check(torch.full((7,), math.nan), read=("others",))
    check(torch.arange(7))
    check(None)
    check_finite(REWARD, NamedArray(), ("rewards",), NAMES)
