"""Requests: what they are made of is checked when they are made."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from reallm.errors import ConfigError
from reallm.generation.request import Request


@pytest.mark.parametrize("ids", [[3, 1, 4], (3, 1, 4), torch.tensor([3, 1, 4]), np.array([3, 1, 4])], ids=str)
def test_token_ids_may_come_in_any_form(ids):
    request = Request(ids, key=np.int64(7))
    assert request == Request((3, 1, 4), key=7)
    assert [type(value) for value in (*request.prompt_ids, request.key)] == [int] * 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt_ids": "Once"}, "prompt_ids must be token ids, not text; write tokenizer.encode"),
        ({"prompt_ids": (1, 1.5)}, "prompt_ids must be a list of whole numbers; 1.5 is not one"),
        ({"prompt_ids": torch.tensor([[1, 2]])}, r"prompt_ids must be a list of whole numbers; \[1, 2\] is not one"),
        ({"config": {"n": 2}}, r"config must be a GenerationConfig, not a dict; write GenerationConfig\(...\)"),
        ({"key": 1.5}, "key=1.5 must be a whole number or a string"),
        ({"first_sample": -1}, "first_sample=-1 must be at least 0"),
        ({"prompt": (1,)}, "Request has no field 'prompt'; did you mean 'prompt_ids'?"),
    ],
    ids=str,
)
def test_values_of_a_wrong_kind_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        Request(**{"prompt_ids": (1,)} | fields)
