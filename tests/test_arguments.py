"""Arguments of public functions that are wrong are named, with what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reallm import Dataset, Layout
from reallm.arguments import check_count, check_instance, check_items, check_path, named_arguments
from reallm.errors import ConfigError
from reallm.generation.config import GenerationConfig


@named_arguments(torch_dtype="dtype")
def loads(path: str, *, dtype: str = "", device: str = "") -> str:
    """A function."""
    return f"{path}{dtype}{device}"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("torch_dtype", "loads has no argument 'torch_dtype'; did you mean 'dtype'?"),
        ("devise", "loads has no argument 'devise'; did you mean 'device'?"),
        ("revision", "loads has no argument 'revision'; it has: path, dtype, device"),
    ],
)
def test_an_unknown_argument(argument: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loads("x", **{argument: 1})
    assert str(caught.value) == said
    assert loads("x", dtype="y") == "xy"
    assert loads.__doc__ == "A function."


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Layout(tpp=2), "Layout has no field 'tpp'; did you mean 'pp'?"),
        (lambda: Dataset(path="x"), "Dataset has no field 'path'; it has: name, args"),
        (
            lambda: GenerationConfig(max_newtokens=3),
            "GenerationConfig has no field 'max_newtokens'; did you mean 'max_new_tokens'?",
        ),
    ],
)
def test_an_unknown_field(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("3", "n='3' must be a whole number"),
        (2.0, "n=2.0 must be a whole number"),
        (True, "n=True must be a whole number"),
        (None, "n=None must be a whole number"),
        (0, "n=0 must be at least 1"),
    ],
)
def test_a_number_that_is_none(value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_count("n", value)
    assert str(caught.value) == said


def test_numbers_of_numpy_are_numbers() -> None:
    assert type(check_count("n", np.int64(3))) is int
    assert check_items("ids", np.array([1, 2]), int) == [1, 2]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "path must be a path as text or pathlib.Path, not None"),
        (3, "path must be a path as text or pathlib.Path, not an int"),
        (["a"], "path must be a path as text or pathlib.Path, not a list"),
        (" ", "path is empty; it must be a path"),
    ],
)
def test_what_is_not_a_path(value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_path("path", value)
    assert str(caught.value) == said
    assert check_path("path", Path("a")) == Path("a")


def test_items_and_instances() -> None:
    with pytest.raises(ConfigError, match=r"^stop='x' must be a list of strings; write stop=\['x'\]$"):
        check_items("stop", "x", str)
    with pytest.raises(ConfigError, match="^stop must be a list of strings; 3 is not one$"):
        check_items("stop", ["a", 3], str)
    with pytest.raises(ConfigError, match="^model must be a Path, not text; write Path$"):
        check_instance("model", "x", Path, "write Path")
