"""What SFT shows of a sample at evaluations."""

from __future__ import annotations

import pytest
import torch

from reallm import from_dict
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
