"""What is broadcast of sampled tokens is all of it."""

from __future__ import annotations

import pytest
import torch

from reallm.generation.config import GenerationConfig
from reallm.generation.partial_completion import sampled_tokens
from reallm.generation.random import StreamPosition
from reallm.generation.sampling import sample
from reallm.generation.token_broadcast import N_NUMBERS, read_token, write_numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tokens_as_numbers_and_back(dtype):
    configs = [
        GenerationConfig(temperature=1.0),
        GenerationConfig(temperature=0.7, top_k=5, kept_ids=True, kept_mass=True, top_logprobs=3),
        GenerationConfig(temperature=0, model_logprobs=True, kept_ids=True, top_logprobs=1),
    ]
    logits = torch.randn(3, 2**17, dtype=dtype, generator=torch.Generator().manual_seed(0))
    sampled = sample(logits, configs, [StreamPosition(0, 1, 2, position) for position in range(3)])
    numbers = torch.zeros(3, N_NUMBERS + 2 * 3, dtype=torch.float64)
    write_numbers(sampled, numbers)
    ids = iter([token_id for row in sampled.kept_ids for token_id in row])
    for row, config, token in zip(numbers.tolist(), configs, sampled_tokens(sampled), strict=True):
        assert read_token(row, config, ids) == token._replace(kept_ids=list(token.kept_ids))
