"""The log-probabilities with which tokens were sampled, and those that training computes for them."""

from __future__ import annotations

import math

import pytest
import torch

from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError, DataError
from reallm.generation.config import GenerationConfig
from reallm.generation.mismatch import logprob_mismatch
from tests.helpers.tiny_config import TINY

CONFIG = TINY.replace(n_layers=3, vocab_size=300, init_std=0.3)
PROMPTS = [[1, 2, 3], [4], list(range(5, 25)), [7, 7]]


def test_the_difference_and_what_it_means():
    rollout, training = torch.tensor([-1.0, -2.0, -0.5, -9.0]), torch.tensor([-1.5, -2.0, -0.25, -1.0])
    found = logprob_mismatch(rollout, training, torch.tensor([True, True, True, False]))
    differences = [-0.5, 0.0, 0.25]
    assert found == {
        "sampling/sampling_logp_difference/max": 0.5,
        "sampling/sampling_logp_difference/mean": 0.25,
        "sampling/kl": pytest.approx(sum(math.exp(d) - 1 - d for d in differences) / 3),
    }
    assert logprob_mismatch(rollout, rollout)["sampling/kl"] == 0
    assert logprob_mismatch(rollout, training, torch.zeros(4, dtype=torch.bool)) == {}


def test_the_divergence_is_that_of_the_two_distributions():
    logits = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rollout, training = logits.log_softmax(-1)
    drawn = torch.multinomial(rollout.exp(), 200_000, replacement=True, generator=torch.Generator().manual_seed(1))
    exact = (rollout.exp() * (rollout - training)).sum().item()
    assert logprob_mismatch(rollout[drawn], training[drawn])["sampling/kl"] == pytest.approx(exact, rel=0.02)


def rolled_out_and_trained(model, config):
    """The log-probabilities of all sampled tokens: as sampled, and of a packed pass over whole sequences."""
    completions = model.generate(PROMPTS, config)
    sequences = [[*completion.prompt_ids, *completion.token_ids] for completion in completions]
    tokens = torch.tensor([token for sequence in sequences for token in sequence])
    cu_seqlens = torch.tensor([0, *map(len, sequences)]).cumsum(0)
    is_new = torch.tensor(
        [at >= len(each.prompt_ids) for each, ids in zip(completions, sequences, strict=True) for at in range(len(ids))]
    )
    trained = {
        temperature: model.token_logprobs(tokens, cu_seqlens, temperature)[is_new]
        for temperature in (config.effective_temperature or 1.0, 1.0)
    }
    return completions, trained


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 1.0, "n": 3},
        {"temperature": 0.6, "n": 2},
        {"temperature": 1.4, "top_k": 40, "top_p": 0.9, "min_p": 0.02, "n": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("changes", "dtype", "tolerance"),
    [
        # `token_logprobs` returns float32: numbers of up to 16 are rounded by at most 2^-21
        ({}, torch.float64, 5e-7),
        ({"logit_softcap": 5.0, "logit_multiplier": 0.5}, torch.float64, 5e-7),
        # float32: sums in another order
        ({}, torch.float32, 1e-4),
        ({"logit_softcap": 5.0, "tied_embeddings": True}, torch.float32, 1e-4),
    ],
    ids=str,
)
def test_rollouts_have_the_log_probabilities_of_training(changes, dtype, tolerance, fields):
    model = ReaLModel(CONFIG.replace(**changes), seed=1).to(dtype)
    config = GenerationConfig(max_new_tokens=12, model_logprobs=True, stop_token_ids=(0,), seed=4, **fields)
    completions, trained = rolled_out_and_trained(model, config)

    def of_all(name):
        return torch.tensor([value for each in completions for value in getattr(each, name)], dtype=torch.float64)

    found = logprob_mismatch(of_all("logprobs"), trained[config.effective_temperature or 1.0])
    assert found["sampling/sampling_logp_difference/max"] < tolerance
    assert 0 <= found["sampling/kl"] < tolerance
    at_one = logprob_mismatch(of_all("model_logprobs"), trained[1.0])
    assert at_one["sampling/sampling_logp_difference/max"] < tolerance
    if fields["temperature"] not in (0, 1.0):
        # with another temperature than the one of the rollouts they would be far apart
        assert logprob_mismatch(of_all("logprobs"), trained[1.0])["sampling/sampling_logp_difference/max"] > 0.1


def test_log_probabilities_of_other_tokens_are_refused():
    with pytest.raises(DataError, match=r"training has the shape \[4\], and rollout \[3\]"):
        logprob_mismatch(torch.zeros(3), torch.zeros(4))
    with pytest.raises(DataError, match=r"mask has the shape \[2\]"):
        logprob_mismatch(torch.zeros(3), torch.zeros(3), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ConfigError, match=r"rollout must be a Tensor, not a list; write torch.tensor\(rollout\)"):
        logprob_mismatch([0.0], torch.zeros(1))
