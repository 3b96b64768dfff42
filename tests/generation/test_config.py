"""Settings of generation: which values are allowed, and what the temperature is if none is given."""

from __future__ import annotations

import pytest

from reallm.errors import ConfigError
from reallm.generation.config import GenerationConfig


@pytest.mark.parametrize(
    ("fields", "temperature"),
    [
        ({}, 0.0),
        ({"top_k": 5}, 1.0),
        ({"top_p": 0.9}, 1.0),
        ({"min_p": 0.1}, 1.0),
        ({"n": 2}, 1.0),
        ({"temperature": 0.3, "top_k": 5, "n": 2}, 0.3),
        ({"temperature": 0, "top_k": 5}, 0.0),
    ],
)
def test_it_is_greedy_unless_something_says_to_sample(fields, temperature):
    assert GenerationConfig(**fields).effective_temperature == temperature


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_new_tokens": -1}, "max_new_tokens=-1 must be at least 0"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9 is more than max_new_tokens=8"),
        ({"temperature": -0.5}, "temperature=-0.5 must be at least 0"),
        ({"top_k": 0}, "top_k=0 must be at least 1"),
        ({"top_p": 0.0}, "top_p=0.0 must be more than 0"),
        ({"min_p": 1.5}, "min_p=1.5 must be at least 0 and at most 1"),
        ({"stop": ("",)}, "empty string"),
        ({"n": 0}, "n=0 must be at least 1"),
        ({"n": 4, "temperature": 0}, "n=4 with temperature=0 would give 4 equal samples"),
        ({"top_logprobs": -2}, "top_logprobs=-2 must be at least 0"),
        ({"max_tokens": 3}, "GenerationConfig has no field 'max_tokens'"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(**fields)
