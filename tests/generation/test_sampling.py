"""Sampling: draws have the probabilities that the settings say, whatever else is sampled in the same step."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from reallm.generation import sampling
from reallm.generation.config import GenerationConfig
from reallm.generation.random import StreamPosition, hash_key
from reallm.generation.sampling import sample
from reallm.model.linear_cross_entropy import OutputHead, head_cross_entropy, head_logprobs

N_DRAWS = 6000


def reference(logits, *, temperature=1.0, top_k=None, top_p=None, min_p=None, banned=()):
    """Probabilities of one row of logits, token by token, and the mass of the kept tokens in the whole distribution."""
    order = sorted((token for token in range(len(logits)) if token not in banned), key=lambda t: (-logits[t], t))
    whole = {token: math.exp((logits[token] - max(logits)) / temperature) for token in range(len(logits))}
    kept = order[:top_k]
    if top_p is not None:
        mass, total, few = 0.0, math.fsum(whole[token] for token in kept), []
        for token in kept:
            if mass >= top_p * total:
                break
            few.append(token)
            mass += whole[token]
        kept = few
    if min_p is not None:
        kept = [token for token in kept if whole[token] >= min_p * whole[kept[0]]]
    total = math.fsum(whole[token] for token in kept)
    probabilities = np.zeros(len(logits))
    for token in kept:
        probabilities[token] = whole[token] / total
    return probabilities, total / math.fsum(whole.values())


def streams(n, **fields):
    return [
        StreamPosition(**({"seed": 0, "key": hash_key(row), "sample": 0, "position": 0} | fields)) for row in range(n)
    ]


def is_unlikely(counts, probabilities):
    """Whether a chi-square test rejects that counts have these probabilities, at about 4 standard deviations."""
    expected = counts.sum() * probabilities
    common = expected >= 5
    if not common.all():  # the rare ones together
        expected = np.append(expected[common], expected[~common].sum())
        counts = np.append(counts[common], counts[~common].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    if freedom == 0:
        return False
    statistic = ((counts - expected) ** 2 / expected).sum()
    # Wilson and Hilferty: the cube root of chi-square is nearly normal
    spread = 2 / (9 * freedom)
    return abs((statistic / freedom) ** (1 / 3) - (1 - spread)) > 4 * spread**0.5


SETTINGS = {
    "temperature 1": {"temperature": 1.0},
    "temperature 0.7": {"temperature": 0.7},
    "temperature 2.5": {"temperature": 2.5},
    "top_k": {"top_k": 7},
    "top_k of one": {"top_k": 1},
    "top_k of more than there are": {"top_k": 5000},
    "top_p": {"top_p": 0.8},
    "top_p of all": {"top_p": 1.0},
    "top_p of one token": {"top_p": 1e-6},
    "min_p": {"min_p": 0.05},
    "min_p of one": {"min_p": 1.0},
    "min_p of nothing": {"min_p": 0.0},
    "top_k and top_p": {"top_k": 20, "top_p": 0.7},
    "top_k and min_p": {"top_k": 20, "min_p": 0.1},
    "top_p and min_p": {"top_p": 0.9, "min_p": 0.03},
    "all": {"temperature": 1.5, "top_k": 25, "top_p": 0.9, "min_p": 0.04},
}
BANNED = {"nothing banned": (), "banned": (3, 40, 299)}
N_VOCAB = 300
LOGITS = torch.randn(N_VOCAB, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2.5
LOGITS[3] = LOGITS.max() + 1  # the most likely token is one that may be banned


@pytest.mark.parametrize("banned", BANNED.values(), ids=BANNED)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_draws_have_the_probabilities_of_the_settings(settings, banned):
    config = GenerationConfig(**settings, kept_mass=True, kept_ids=True)
    probabilities, mass = reference(LOGITS.tolist(), banned=banned, **settings)
    result = sample(LOGITS.expand(N_DRAWS, -1), [config] * N_DRAWS, streams(N_DRAWS), banned=[banned] * N_DRAWS)
    counts = np.bincount(result.token_ids, minlength=N_VOCAB)
    assert not counts[probabilities == 0].any()
    assert not is_unlikely(counts, probabilities)
    whole = LOGITS / config.effective_temperature
    torch.testing.assert_close(result.logprobs, whole.log_softmax(-1)[result.token_ids])
    torch.testing.assert_close(result.kept_mass, torch.full((N_DRAWS,), mass, dtype=torch.float64))
    assert [list(ids) for ids in (result.kept_ids[0], result.kept_ids[-1])] == [probabilities.nonzero()[0].tolist()] * 2


def test_a_chi_square_test_notices_a_wrong_distribution():
    config = GenerationConfig(temperature=0.9)
    drawn = sample(LOGITS.expand(N_DRAWS, -1), [config] * N_DRAWS, streams(N_DRAWS)).token_ids
    assert is_unlikely(np.bincount(drawn, minlength=N_VOCAB), reference(LOGITS.tolist())[0])


@pytest.mark.parametrize("n_vocab", [49_152, 50_257, 151_936])
def test_draws_from_a_large_vocabulary_in_float32(n_vocab):
    # tokens of all ranges of ids, more and less likely ones; the mass of groups of them is compared
    logits = torch.randn(n_vocab, generator=torch.Generator().manual_seed(2)) * 2
    n_draws, group = 2000, -(-n_vocab // 40)
    config = GenerationConfig(temperature=0.9)
    drawn = sample(logits.expand(n_draws, -1), [config] * n_draws, streams(n_draws, seed=5)).token_ids
    probabilities = (logits.double() / 0.9).softmax(-1).numpy()
    mass = np.array([probabilities[start : start + group].sum() for start in range(0, n_vocab, group)])
    assert not is_unlikely(np.bincount(drawn // group, minlength=len(mass)), mass)
    rare = probabilities < np.quantile(probabilities, 0.5)
    share = probabilities[rare].sum()
    assert abs(rare[drawn].mean() - share) < 4.5 * (share / n_draws) ** 0.5


@pytest.mark.parametrize("field", ["seed", "sample", "position"])
def test_draws_at_neighbouring_places_of_a_stream_are_independent(field):
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).log()
    places = [
        StreamPosition(**({"seed": 0, "key": 0, "sample": 0, "position": 0} | {field: i})) for i in range(N_DRAWS)
    ]
    drawn = sample(logits.expand(N_DRAWS, -1), [GenerationConfig(temperature=1.0)] * N_DRAWS, places).token_ids.numpy()
    pairs = np.bincount(drawn[:-1:2] * 4 + drawn[1::2], minlength=16)
    assert not is_unlikely(pairs, np.outer(logits.exp(), logits.exp()).ravel())


def test_greedy_takes_the_lowest_of_the_most_likely_ids():
    logits = torch.zeros(3, 1000)
    logits[0, [700, 300, 999]] = logits[1, [255, 256]] = logits[2, 999] = 2.5
    greedy = [GenerationConfig(temperature=0)] * 3
    assert sample(logits, greedy, streams(3)).token_ids.tolist() == [300, 255, 999]
    assert sample(logits.bfloat16(), greedy, streams(3)).token_ids.tolist() == [300, 255, 999]
    result = sample(logits, greedy, streams(3), banned=[[300], [255, 256], [5000, -1]])
    assert result.token_ids.tolist() == [700, 0, 999]
    # log-probabilities are those of the whole distribution
    assert torch.allclose(result.logprobs, logits.log_softmax(-1)[[0, 1, 2], result.token_ids])


def test_truncation_keeps_the_lowest_of_equally_likely_ids():
    logits = torch.zeros(1, 600)
    logits[0, ::2] = 1.0
    for settings, kept in [
        ({"top_k": 5}, [0, 2, 4, 6, 8]),
        ({"top_k": 302}, sorted([*range(0, 600, 2), 1, 3])),
        ({"top_p": math.e / (300 * math.e + 300) * 3.5}, [0, 2, 4, 6]),
        ({"top_k": 10, "top_p": 0.5}, [0, 2, 4, 6, 8]),
    ]:
        result = sample(logits, [GenerationConfig(**settings, kept_ids=True)], streams(1))
        assert list(result.kept_ids[0]) == kept, settings


@pytest.mark.parametrize(
    "settings", [fields for fields in SETTINGS.values() if len(fields) > 1 or "temperature" not in fields], ids=str
)
@pytest.mark.parametrize("n_vocab", [100, 3000])
def test_the_tokens_that_are_kept_are_those_that_transformers_keeps(n_vocab, settings):
    n_rows = 40
    logits = (
        torch.randn(n_rows, n_vocab, generator=torch.Generator().manual_seed(6))
        * torch.linspace(0.1, 6, n_rows)[:, None]
    )
    config = GenerationConfig(**settings, kept_ids=True)
    warped = logits / config.effective_temperature
    if config.top_k is not None:
        warped = TopKLogitsWarper(config.top_k)(None, warped)
    if config.top_p is not None:
        warped = TopPLogitsWarper(config.top_p)(None, warped)
    if config.min_p is not None:
        warped = MinPLogitsWarper(config.min_p)(None, warped)
    kept = sample(logits, [config] * n_rows, streams(n_rows)).kept_ids
    assert [list(ids) for ids in kept] == [row.nonzero()[:, 0].tolist() for row in warped.isfinite()]


def test_a_banned_token_is_not_kept_even_if_there_are_fewer_than_top_k():
    logits, banned = torch.zeros(1, 6), [(1, 4)]
    for settings in ({"top_k": 5}, {"top_k": 6}, {"top_p": 0.999}, {"min_p": 1e-9}, {"temperature": 1.0}):
        result = sample(logits, [GenerationConfig(**settings, kept_ids=True)], streams(1), banned=banned)
        assert list(result.kept_ids[0]) == [0, 2, 3, 5]


MIXED = [
    GenerationConfig(temperature=0),
    GenerationConfig(temperature=1.0),
    GenerationConfig(temperature=0.6, model_logprobs=True),
    GenerationConfig(top_k=3, kept_mass=True),
    GenerationConfig(top_k=40, temperature=0.8),
    GenerationConfig(top_p=0.9, kept_ids=True),
    GenerationConfig(top_p=0.999, top_logprobs=3),
    GenerationConfig(top_p=0.5, top_k=100, min_p=0.02),
    GenerationConfig(min_p=0.1, temperature=1.7),
]


@pytest.mark.parametrize("n_vocab", [200, 1500, 50_257])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_the_others(dtype, n_vocab, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    n = len(MIXED) * (5 if n_vocab < 10_000 else 2)
    logits = (torch.randn(n, n_vocab, generator=generator, dtype=torch.float64) * 3).to(dtype)
    configs = MIXED * (n // len(MIXED))
    banned = [(row, 7) if row % 4 == 0 else () for row in range(n)]
    places = streams(n, seed=11)
    together = sample(logits, configs, places, banned=banned)
    alone = [sample(logits[row : row + 1], [configs[row]], [places[row]], banned=[banned[row]]) for row in range(n)]
    order = torch.randperm(n, generator=generator).tolist()
    monkeypatch.setitem(sampling.CHUNK_BYTES, "cpu", 4 * n_vocab * 3)  # three rows a chunk
    shuffled = sample(
        logits[order], [configs[i] for i in order], [places[i] for i in order], banned=[banned[i] for i in order]
    )
    for row, single in enumerate(alone):
        place = order.index(row)
        for name in ("token_ids", "logprobs"):
            assert getattr(single, name)[0] == getattr(together, name)[row] == getattr(shuffled, name)[place]
        for name in ("model_logprobs", "kept_mass", "kept_ids", "top_logprobs"):
            if getattr(configs[row], name):
                value = getattr(single, name)[0]
                assert getattr(together, name)[row] == getattr(shuffled, name)[place] == value, name


def test_results_that_nobody_asks_for_are_not_computed():
    result = sample(torch.zeros(2, 5), [GenerationConfig(), GenerationConfig(top_k=2)], streams(2))
    assert result[2:] == (None, None, None, None)
    asking = GenerationConfig(temperature=2.0, model_logprobs=True, kept_mass=True, kept_ids=True, top_logprobs=2)
    result = sample(torch.zeros(2, 5), [GenerationConfig(), asking], streams(2))
    assert result.kept_ids == [(), range(5)]
    assert result.top_logprobs == [[], [(0, pytest.approx(-math.log(5))), (1, pytest.approx(-math.log(5)))]]


def test_optional_results():
    logits = torch.randn(2, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fields = {"model_logprobs": True, "kept_mass": True, "kept_ids": True, "top_logprobs": 4}
    configs = [GenerationConfig(temperature=0, **fields), GenerationConfig(temperature=0.5, top_k=9, **fields)]
    result = sample(logits, configs, streams(2))
    greedy, drawn = result.token_ids.tolist()
    assert result.kept_ids[0] == [greedy] == [int(logits[0].argmax())]
    torch.testing.assert_close(result.model_logprobs, logits.log_softmax(-1).gather(1, result.token_ids[:, None])[:, 0])
    # the greedy token is drawn from itself alone, so its probability under that is one
    torch.testing.assert_close(result.kept_mass[0], result.logprobs[0].exp())
    halved = (logits[1] / 0.5).log_softmax(-1)
    best = halved.topk(9)
    assert result.kept_ids[1] == sorted(best.indices.tolist())
    assert drawn in result.kept_ids[1]
    torch.testing.assert_close(result.kept_mass[1], best.values.exp().sum())
    assert [token for token, _ in result.top_logprobs[1]] == best.indices[:4].tolist()
    assert [value for _, value in result.top_logprobs[1]] == pytest.approx(best.values[:4].tolist())


@pytest.mark.parametrize("config", MIXED, ids=str)
@pytest.mark.parametrize("culprit", [math.nan, math.inf])
def test_logits_that_are_not_finite_spoil_their_row_alone(config, culprit):
    logits = torch.randn(5, 3000, generator=torch.Generator().manual_seed(4)) * 2
    clean = sample(logits, [config] * 5, streams(5))
    logits[2, 1234] = culprit
    result = sample(logits, [config] * 5, streams(5))
    assert math.isnan(result.logprobs[2])
    assert 0 <= result.token_ids[2] < 3000
    others = [0, 1, 3, 4]
    assert torch.equal(result.token_ids[others], clean.token_ids[others])
    assert torch.equal(result.logprobs[others], clean.logprobs[others])


def test_tokens_of_no_probability_are_never_drawn():
    """Also at both ends of the random numbers, where rounding could lead past the kept tokens."""
    n_vocab = 700
    for kept in ([0], [699], [256], [5, 255, 256, 600], list(range(250, 262))):
        logits = torch.full((4, n_vocab), -math.inf)
        logits[:, kept] = torch.linspace(0, -60, len(kept))
        for config in (GenerationConfig(temperature=1.0), GenerationConfig(top_p=0.9999), GenerationConfig(top_k=300)):
            drawn = [draw_at(logits, config, number) for number in (0.0, 2.0**-53, 0.5, 1 - 2.0**-53)]
            assert {token for tokens in drawn for token in tokens} <= set(kept)
            assert drawn[-1][0] >= drawn[0][0]


def draw_at(logits, config, number):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "uniform", lambda places: torch.full((len(places),), number, dtype=torch.float64))
        return sample(logits, [config] * len(logits), streams(len(logits))).token_ids.tolist()


def test_extreme_temperatures():
    logits = torch.randn(2, 900, generator=torch.Generator().manual_seed(0)) * 40
    for temperature in (1e-300, 1e-46, 1e-9):
        result = sample(logits, [GenerationConfig(temperature=temperature)] * 2, streams(2))
        assert torch.equal(result.token_ids, logits.argmax(-1))
        assert result.logprobs.tolist() == [0, 0]
    flat = sample(logits, [GenerationConfig(temperature=1e30)] * 2, streams(2)).logprobs
    assert flat.tolist() == pytest.approx([-math.log(900)] * 2)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize(("multiplier", "softcap"), [(1.0, None), (0.3, 2.0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tokens_are_trained_on_with_the_log_probabilities_with_which_they_were_sampled(
    dtype, multiplier, softcap, has_bias, temperature
):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(n, 24, generator=generator).to(dtype) for n in (9, 700, 1))
    head = OutputHead(weight, bias.new_ones(700) if has_bias else None, multiplier, softcap)
    logits = head.logits(hidden)
    assert logits.dtype == dtype
    sampled = sample(logits, [GenerationConfig(temperature=temperature, top_k=50)] * 9, streams(9))
    logprobs = head_logprobs(hidden, sampled.token_ids, head, temperature)
    nll = head_cross_entropy(hidden, sampled.token_ids, head, temperature).nll
    assert torch.equal(nll, -logprobs)
    if dtype is torch.float32 and has_bias:  # which training adds to logits that are rounded already
        torch.testing.assert_close(logprobs, sampled.logprobs, rtol=3e-7, atol=0)
    else:  # also where logits have steps of 2^-5, as in bfloat16
        assert torch.equal(logprobs, sampled.logprobs)


def test_no_rows():
    result = sample(torch.zeros(0, 10), [], [])
    assert result.token_ids.shape == result.logprobs.shape == (0,)
