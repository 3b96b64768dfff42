"""Dtypes, devices, tokens and bounds as users pass them: lists and arrays are taken, mistakes are named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from reallm.errors import DataError
from reallm.model.inputs import as_cu_seqlens, as_prompts, as_tokens
from reallm.model.packed import PackedSequences


@pytest.mark.parametrize(
    "value",
    [[5, 3, 9], (5, 3, 9), np.array([5, 3, 9]), torch.tensor([5, 3, 9]), torch.tensor([5, 3, 9]).to(torch.uint8)],
)
def test_tokens_in_any_form(value: Any) -> None:
    assert as_tokens(value, 10).tolist() == [5, 3, 9]
    assert as_cu_seqlens(value).tolist() == [5, 3, 9]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1, 10], "tokens[1] is 10, but the model has tokens 0 to 9; take the tokenizer that belongs to it"),
        ([1, 2, -1], "tokens[2] is -1, but the model has tokens 0 to 9; take the tokenizer that belongs to it"),
        ([1.5], "tokens must be integers [T], but its dtype is float32"),
        ([True], "tokens must be integers [T], but its dtype is bool"),
        ([[1, 2]], "tokens must be one-dimensional, [T], but its shape is [1, 2]; sequences are packed one after "
         "another, without padding"),
        (None, "tokens must be integers [T], not None"),
        ("text", "tokens must be integers [T], not text"),
    ],
)  # fmt: skip
def test_what_are_not_tokens(value: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        as_tokens(value, 10)
    assert str(caught.value) == said


def test_bounds_as_a_list() -> None:
    tokens = torch.arange(5)
    assert PackedSequences.from_cu_seqlens([0, 3, 5], tokens).lengths == (3, 2)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="cu_seqlens is empty"):
        PackedSequences.from_cu_seqlens([], tokens)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="but its dtype is float32"):
        PackedSequences.from_cu_seqlens([0.0, 5.0], tokens)  # type: ignore[arg-type]


def test_prompts_in_any_form() -> None:
    assert as_prompts(["a", [1, 2], torch.tensor([3]), np.array([4])]) == ["a", [1, 2], [3], [4]]
    assert as_prompts(torch.tensor([[1, 2]])) == [[1, 2]]
    assert as_prompts([]) == []


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("a", 'prompts must be a list; write generate(["..."]) for a single text'),
        (None, "prompts must be a list of texts or of lists of token ids, not None"),
        ({"a": 1}, "prompts must be a list of texts or of lists of token ids, not a dict"),
        ([1, 2], "prompts must be a list of prompts; write generate([ids]) for the token ids of one"),
        (torch.tensor([1, 2]), "prompts must be a list of prompts; write generate([ids]) for the token ids of one"),
        ([[1.5]], "prompts[0] must be integers [T], but its dtype is float32"),
        ([[1], None], "prompts[1] must be text or a list of token ids, not None"),
    ],
)
def test_what_are_not_prompts(value: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        as_prompts(value)
    assert str(caught.value) == said
