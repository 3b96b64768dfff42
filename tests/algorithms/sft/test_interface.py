"""What SFT asks of a batch, and what it shows of a sample at evaluations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from reallm import DataError, from_dict
from reallm.algorithms.sft.interface import SFTInterface


@pytest.mark.parametrize(
    ("mask", "prompt", "expected"),
    [
        ("..xx", [0, 1], [2, 3]),
        (".xx..xxx", [0, 1, 2, 3, 4], [5, 6, 7]),
        (".xx..xx..", [0, 1, 2, 3, 4], [5, 6]),
        (".xxxxx", [0, 1, 2], [3, 4, 5]),
        ("x", None, None),
        ("...", None, None),
    ],
)
def test_an_example_is_the_last_part_in_the_loss_and_all_that_comes_before(
    mask: str, prompt: list[int] | None, expected: list[int] | None
) -> None:
    sample = from_dict({"input_ids": torch.arange(len(mask)), "loss_mask": torch.tensor([one == "x" for one in mask])})
    example = SFTInterface().example(sample)
    found = (None, None) if example is None else (example.prompt_ids, example.expected_ids)
    assert found == (prompt, expected)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"input_ids": torch.arange(4.0)}, r"field 'input_ids' is float32\[4\]; it must be a tensor of int64"),
        ({"input_ids": np.arange(4)}, r"field 'input_ids' is numpy int64\[4\]; it must be a tensor of int64"),
        ({"loss_mask": torch.ones(4)}, r"field 'loss_mask' is float32\[4\]; it must be a tensor of bool"),
    ],
)
def test_fields_of_another_type_are_refused(fields: dict[str, Any], said: str) -> None:
    right = {"input_ids": torch.arange(4), "loss_mask": torch.ones(4, dtype=torch.bool)}
    seqlens = {"input_ids": [[4]], "loss_mask": [[4]]}
    assert SFTInterface().loss_weight(from_dict(right, {"seqlens": seqlens})) == 3
    with pytest.raises(DataError, match=said):
        SFTInterface().loss_weight(from_dict({**right, **fields}, {"seqlens": seqlens}))
