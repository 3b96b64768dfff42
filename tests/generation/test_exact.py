"""Exact mode: log-probabilities of completions are those of the packed forward pass, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from reallm.engine.real_model import ReaLModel
from reallm.errors import DataError
from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.logprobs import logprobs
from reallm.generation.request import Completion, FinishedEvent, Request
from reallm.model.config import ReaLModelConfig
from reallm.model.exact import why_not_exact
from reallm.model.rope import longest_with_fixed_frequencies
from reallm.model.transformer import Transformer
from tests.helpers.hf_grid import GRID, raw_config, save_hf
from tests.helpers.variants import BASE, VARIANTS, build

pytestmark = pytest.mark.skipif(
    why_not_exact(build(BASE)) is not None, reason=f"not exact on this machine: {why_not_exact(build(BASE))}"
)
FAMILIES = [
    *("gqa", "mqa", "tied", "all-biases-tied", "rope-dynamic-new", "mistral-window", "mixtral"),
    *("qwen2-window", "qwen3-bias", "qwen3-moe-dense-layer", "gemma", "gemma2", "gemma3-seven-layers"),
    *("gpt2", "phi3", "phi3-longrope"),
]
SHARED = [(7 * i + i * i) % 41 for i in range(130)]
PROMPTS_AND_LENGTHS = (
    ([*SHARED, 3], 5),
    ([*SHARED, 4, 5], 3),
    ([2], 70),
    (SHARED[3:66], 4),
    (SHARED[5:69], 2),
    ([9, 8, 7], 9),
)
"""Prompts, and how many tokens follow them: chunks of 64 positions are outgrown in prompts and in completions."""


def requests_for(config: ReaLModelConfig) -> list[Request]:
    """Requests that fit a configuration, some with several samples."""
    limits = config.longest_sequence, longest_with_fixed_frequencies(config)
    longest = min((limit for limit in limits if limit is not None), default=1000)
    requests = []
    for key, (prompt, n_new) in enumerate(PROMPTS_AND_LENGTHS):
        n_new = min(n_new, longest // 2)
        settings = GenerationConfig(max_new_tokens=n_new, n=1 + key % 2, temperature=0.8, stop_token_ids=())
        requests.append(Request(tuple(prompt[: longest - n_new]), settings, key=key))
    return requests


def differing(network: Transformer, completions: Sequence[Completion], temperature: float = 0.8) -> list[int]:
    """Indices of completions of which a log-probability is not that of an exact forward pass over all of them."""
    sequences = [[*each.prompt_ids, *each.token_ids] for each in completions]
    tokens = torch.tensor([token for sequence in sequences for token in sequence])
    bounds = torch.tensor([0, *(len(sequence) for sequence in sequences)]).cumsum(0)
    packed = logprobs(network, tokens, bounds, temperature, exact=True)
    return [
        i
        for i, each in enumerate(completions)
        if packed[bounds[i] + len(each.prompt_ids) : bounds[i + 1]].tolist() != each.logprobs
    ]


def run(network: Transformer, requests: Sequence[Request], **options: int | bool) -> list[Completion]:
    with GenerationEngine(network, exact=True, **options) as engine:  # type: ignore[arg-type]
        for request in requests:
            engine.add(request)
        return engine.run()


@pytest.mark.parametrize(
    ("variant", "n_threads"), [*((each, 1) for each in VARIANTS), ("grouped heads", 2), ("soft cap", 2), ("experts", 2)]
)
def test_every_kind_of_attention_and_block(variant: str, n_threads: int) -> None:
    network, before = build(VARIANTS[variant]), torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        requests = requests_for(network.config)
        completions = run(network, requests, max_batch_tokens=50, max_batch_sequences=4)
        assert sum(request.config.n for request in requests) == len(completions)
        assert differing(network, completions) == []
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(name: str, tmp_path: Path) -> None:
    assert name in GRID
    save_hf(raw_config(name), tmp_path)
    network = ReaLModel.from_pretrained(tmp_path).network
    assert differing(network, run(network, requests_for(network.config), max_batch_tokens=50)) == []


@pytest.mark.parametrize(
    "options", [{}, {"max_batch_tokens": 7}, {"max_batch_sequences": 1}, {"prefix_sharing": False}]
)
def test_completions_are_the_same_bits_in_every_batch(options: dict[str, int | bool]) -> None:
    network = build(BASE)
    requests = requests_for(BASE)
    expected = run(network, requests, max_batch_tokens=50)
    assert run(network, requests, **options) == expected
    backwards = run(network, requests[::-1], max_batch_tokens=50)
    assert sorted(map(repr, backwards)) == sorted(map(repr, expected))


def test_with_shared_prefixes_and_with_preemption(monkeypatch: pytest.MonkeyPatch) -> None:
    network, prefix = build(BASE), [(11 * i + i * i) % 47 for i in range(300)]
    settings = GenerationConfig(max_new_tokens=230, n=2, temperature=0.8, stop_token_ids=())
    requests = [Request((*prefix, key), settings, key=key) for key in range(2)]
    with GenerationEngine(network, exact=True, kv_cache_tokens=1536, max_batch_tokens=300) as engine:
        n_computed: list[int] = []
        run_step = engine._runner.run
        monkeypatch.setattr(
            engine._runner,
            "run",
            lambda step, tokens: n_computed.append(sum(map(len, tokens))) or run_step(step, tokens),
        )
        for request in requests:
            engine.add(request)
        completions = engine.run()
    assert sum(n_computed) > sum(len(each.prompt_ids) + 2 * 230 for each in requests), "nothing was computed again"
    assert differing(network, completions) == []


def test_greedy_completions_and_top_p() -> None:
    network = build(BASE)
    for settings in (
        GenerationConfig(max_new_tokens=6, temperature=0, stop_token_ids=()),
        GenerationConfig(max_new_tokens=6, top_p=0.5, top_k=7, n=3, stop_token_ids=()),
    ):
        assert differing(network, run(network, [Request((4, 5, 6), settings)]), temperature=1.0) == []


def test_sequences_that_may_outgrow_fixed_frequencies_are_refused() -> None:
    network = build(VARIANTS["dynamic rope past the trained length"])
    with GenerationEngine(network, exact=True) as engine:
        engine.add(Request((1,) * 6, GenerationConfig(max_new_tokens=10)))
        message = "may outgrow the 16 tokens beyond which RoPE frequencies depend on a sequence's length"
        with pytest.raises(DataError, match=message):
            engine.add(Request((1,) * 6, GenerationConfig(max_new_tokens=11)))


def test_a_model_generates_and_scores_exactly() -> None:
    model = ReaLModel(BASE, seed=3)
    completions = model.generate([[1, 2, 3], [4]], max_new_tokens=20, temperature=0.7, n=2, exact=True)
    for completion in completions:
        tokens = torch.tensor([*completion.prompt_ids, *completion.token_ids])
        scored = model.token_logprobs(tokens, torch.tensor([0, len(tokens)]), 0.7, exact=True)
        assert scored[len(completion.prompt_ids) :].tolist() == completion.logprobs


def test_a_stream_is_exact_too() -> None:
    model = ReaLModel(BASE, seed=1)
    settings = GenerationConfig(max_new_tokens=6, temperature=0.8, stop_token_ids=())
    prompts = [[3, 1, 4], [2]]
    events = model.stream(prompts, settings, exact=True)
    streamed = [event.completion for event in events if isinstance(event, FinishedEvent)]
    assert not differing(model.network, streamed)
    assert streamed == model.generate(prompts, settings, exact=True)
