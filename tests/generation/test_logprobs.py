"""Inference by several ranks: something of each token, on all of them."""

from __future__ import annotations

import pytest
import torch

from reallm.engine.real_model import ReaLModel
from reallm.errors import ConfigError, DataError
from reallm.generation.config import GenerationConfig
from reallm.generation.generate import generate_tokens
from reallm.generation.logprobs import forward_packed, logprobs
from reallm.model.config import MoEConfig, ReaLModelConfig
from reallm.parallel.mesh import Mesh
from tests.generation.test_distributed import n_ranks
from tests.helpers.ranks import on_ranks
from tests.helpers.tiny_config import TINY

BASE = TINY.replace(n_layers=4, init_std=0.3)
CONFIGS = {
    "grouped heads": BASE,
    "tied head, soft cap": BASE.replace(tied_embeddings=True, logit_softcap=5.0, vocab_size=51),
    "experts": BASE.replace(moe=MoEConfig(4, 2, 24)),
    "dropout, of which inference has none": BASE.replace(residual_dropout=0.5),
}
LAYOUTS = ["dp2", "tp2", "pp2", "pp3", "tp2pp2", "dp2pp2", "dp2tp2", "fsdp2", "fsdp2pp2", "dp2@1,0"]
LENGTHS = [7, 1, 12, 0, 3, 9]
TOKENS = torch.randint(0, 50, (sum(LENGTHS),), generator=torch.Generator().manual_seed(2))
CU_SEQLENS = torch.tensor([0, *LENGTHS]).cumsum(0)


def by_hand(config: ReaLModelConfig, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
    """Log-probabilities from whole logits, a sequence at a time."""
    model = ReaLModel(config, seed=1).eval()
    found = []
    with torch.no_grad():
        for piece in tokens.split(lengths):
            if len(piece):
                logp = model(piece, torch.tensor([0, len(piece)])).log_softmax(-1)
                found.append(torch.cat([torch.zeros(1), logp[:-1].gather(1, piece[1:, None])[:, 0]]))
    return torch.cat(found)


def logprobs_of_all(rank: int, layout: str) -> list[list[torch.Tensor]]:
    """For each configuration: of everything at once, in small parts, of one sequence, and of everything again."""
    mesh, results = Mesh.of(layout), []
    for config in CONFIGS.values():
        model = ReaLModel(config, mesh=mesh, seed=1)
        one = TOKENS[:7], CU_SEQLENS[:2]
        results.append(
            [
                logprobs(model.network, TOKENS, CU_SEQLENS, mesh=mesh),
                logprobs(model.network, TOKENS, CU_SEQLENS, mesh=mesh, max_tokens=8),
                logprobs(model.network, *one, mesh=mesh),
                logprobs(model.network, TOKENS, CU_SEQLENS, mesh=mesh),
            ]
        )
        assert model.training
    return results


@pytest.mark.parametrize("layout", LAYOUTS)
def test_logprobs_are_those_of_whole_logits_on_every_rank(layout):
    by_rank = on_ranks(n_ranks(layout), logprobs_of_all, layout)
    for results in by_rank:
        for config, (whole, in_parts, one, again) in zip(CONFIGS.values(), results, strict=True):
            expected = by_hand(config, TOKENS, LENGTHS)
            # float32, sums in another order: logits of about 10 differ in the last of their 24 bits
            for got in (whole, in_parts):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-5)
            torch.testing.assert_close(one, expected[:7], rtol=1e-5, atol=2e-5)
            assert again.equal(whole)  # the same layout gives the same numbers, bit for bit
        for own, first in zip(results, by_rank[0], strict=True):
            assert all(a.equal(b) for a, b in zip(own, first, strict=True))


@pytest.mark.parametrize("max_tokens", [None, 8, 1])
def test_one_process_has_them_too(max_tokens):
    model = ReaLModel(BASE, seed=1).eval()
    got = logprobs(model.network, TOKENS, CU_SEQLENS, max_tokens=max_tokens)
    torch.testing.assert_close(got, by_hand(BASE, TOKENS, LENGTHS), rtol=1e-5, atol=2e-5)
    assert not model.training
    assert logprobs(model.network, TOKENS[:0], torch.tensor([0])).shape == (0,)


def scores(rank: int, layout: str | None) -> torch.Tensor:
    mesh = None if layout is None else Mesh.of(layout)
    critic = ReaLModel(BASE.replace(is_critic=True), mesh=mesh, seed=1)
    return forward_packed(critic.network, TOKENS, CU_SEQLENS, lambda hidden, *_: critic.head(hidden), mesh=mesh)


@pytest.mark.parametrize("layout", ["dp2pp2", "tp2"])
def test_scores_of_a_critic(layout):
    expected = scores(0, None)
    assert expected.abs().min() > 0
    for got in on_ranks(n_ranks(layout), scores, layout):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def sampled_and_scored(rank: int, layout: str) -> tuple[list[float], list[float]]:
    mesh = Mesh.of(layout)
    model = ReaLModel(BASE, mesh=mesh, seed=1)
    completions = generate_tokens(
        model.eval().network,
        [[1, 2, 3], [4], [5, 6]],
        GenerationConfig(max_new_tokens=6, temperature=1.0, seed=5),
        mesh=mesh,
    )
    texts = [[*completion.prompt_ids, *completion.token_ids] for completion in completions]
    tokens = torch.tensor([token for text in texts for token in text])
    cu_seqlens = torch.tensor([0, *map(len, texts)]).cumsum(0)
    found = logprobs(model.network, tokens, cu_seqlens, mesh=mesh).split([len(text) for text in texts])
    pairs = list(zip(completions, found, strict=True))
    sampled = [logprob for completion, _ in pairs for logprob in completion.logprobs]
    scored = [logprob for completion, piece in pairs for logprob in piece[len(completion.prompt_ids) :].tolist()]
    return sampled, scored


@pytest.mark.parametrize("layout", ["pp2", "tp2"])
def test_what_was_sampled_has_the_log_probability_with_which_it_was(layout):
    for sampled, scored in on_ranks(2, sampled_and_scored, layout):
        assert scored == pytest.approx(sampled, abs=2e-5)


def test_what_cannot_be():
    model = ReaLModel(BASE, seed=1)
    with pytest.raises(ConfigError, match="max_tokens=0 must be at least 1"):
        logprobs(model.network, TOKENS, CU_SEQLENS, max_tokens=0)
    with pytest.raises(DataError, match="cu_seqlens must rise from 0 to the number of tokens, 32"):
        logprobs(model.network, TOKENS, CU_SEQLENS[:-1])


def test_a_model_has_them_as_methods(tmp_path):
    actor, critic = (ReaLModel(BASE.replace(is_critic=is_critic), seed=3) for is_critic in (False, True))
    assert torch.equal(actor.token_logprobs(TOKENS, CU_SEQLENS), logprobs(actor.network, TOKENS, CU_SEQLENS))
    expected = critic.eval()(TOKENS, CU_SEQLENS).detach()
    torch.testing.assert_close(critic.scores(TOKENS, CU_SEQLENS, max_tokens=8), expected)
    with pytest.raises(ConfigError, match="only a critic gives scores"):
        actor.scores(TOKENS, CU_SEQLENS)
    with pytest.raises(ConfigError, match="a critic gives scores, not log-probabilities"):
        critic.token_logprobs(TOKENS, CU_SEQLENS)
