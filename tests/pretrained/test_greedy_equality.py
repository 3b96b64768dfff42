"""Greedy tokens of SmolLM2 on real text are those of transformers, for prompts of unequal length in one batch.

transformers reads each prompt with our tokens after it, alone and without a cache: if at every position its most likely
token is the one that we generated, its own greedy loop would have given the same tokens. Where it is another one, both
must be equally likely up to rounding.
"""

from __future__ import annotations

import pydoc_data.topics
from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from reallm import ReaLModel
from reallm.generation.request import Completion
from tests.helpers.smollm2 import smollm2_folder

N_PROMPTS = 32
N_NEW = 24
TIE = 2e-4
"""Difference of logits, which reach 40, below which rounding decides: that of 30 blocks in float32, summed in two
orders. Largest difference of one logit that `test_smollm2` sees: 1e-4."""


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Pieces of 32 lengths from 4 to 128 tokens, of text about Python."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    ids = tokenizer.encode("\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))[:100_000])
    return [ids[600 * i : 600 * i + 4 * (i + 1)] for i in range(N_PROMPTS)]


@pytest.fixture(scope="module")
def model() -> ReaLModel:
    return ReaLModel.from_pretrained(smollm2_folder())


@torch.no_grad()
def _differences(completions: list[Completion]) -> Iterator[tuple[int, int, float]]:
    """(prompt, new token, by how much transformers prefers another token), where it does."""
    theirs = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32).eval()
    for index, completion in enumerate(completions):
        ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
        logits = theirs(ids[:, :-1], logits_to_keep=len(completion.token_ids)).logits[0]
        chosen = logits.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0]
        for position, difference in enumerate((logits.max(dim=-1).values - chosen).tolist()):
            if difference > 0:
                yield index, position, difference


def test_greedy_tokens_are_those_of_transformers(model: ReaLModel, prompts: list[list[int]]) -> None:
    completions = model.generate(prompts, max_new_tokens=N_NEW, temperature=0, stop_token_ids=())
    assert [len(completion.token_ids) for completion in completions] == [N_NEW] * N_PROMPTS
    assert len({len(completion.prompt_ids) for completion in completions}) == N_PROMPTS
    others = list(_differences(completions))
    assert all(difference < TIE for _, _, difference in others), others
    assert len(others) <= 2, others  # of 768: ties are rare
