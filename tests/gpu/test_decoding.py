"""Decoding over pages and by CUDA graphs, and over rows on a GPU, against the full forward pass."""

from __future__ import annotations

import random

import pytest
import torch

from reallm.generation.config import GenerationConfig
from reallm.generation.engine import GenerationEngine
from reallm.generation.logprobs import logprobs
from reallm.generation.model_runner import ModelRunner
from reallm.generation.page_store import PAGE_SIZE, PageStore
from reallm.generation.request import Request
from reallm.generation.row_store import RowStore
from reallm.generation.stores import make_store
from reallm.model.attention import varlen
from reallm.model.attention.functional import AttentionSpec
from reallm.model.config import ReaLModelConfig
from reallm.model.exact import why_not_exact
from reallm.model.transformer import Transformer
from tests.helpers.page_schedules import PageSchedule, gather_and_attend
from tests.helpers.row_schedules import RowSchedule, random_lengths

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: run `tox run -e gpu` on a machine that has one"
)
needs_pages = pytest.mark.skipif(
    not varlen.supports_pages(), reason="needs varlen_attn with a block table: torch 2.12 or newer"
)

CONFIG = ReaLModelConfig(
    n_layers=2, hidden_size=256, n_q_heads=8, n_kv_heads=2, head_dim=64, intermediate_size=512, vocab_size=1000,
    max_positions=2048, init_std=0.05,
)  # fmt: skip


def build(config: ReaLModelConfig, dtype: torch.dtype) -> Transformer:
    model = Transformer(config)
    model.init_weights(0)
    return model.to("cuda", dtype).eval()


def random_texts(rng: random.Random, n: int, longest: int) -> list[list[int]]:
    return [[rng.randrange(1000) for _ in range(rng.randint(1, longest))] for _ in range(n)]


def check(model, schedule, step, token_ids, runner, tolerance):
    """The logits of a step are those of the full forward pass, but for rounding."""
    logits = runner.run(step, token_ids).double()
    texts = [schedule.texts[sequence.sequence_id] for sequence in step.sequences]
    for text, found in zip(texts, logits, strict=True):
        tokens = torch.tensor(text.tokens[: text.n_cached], device="cuda")
        with torch.no_grad():
            wanted = model(tokens, torch.tensor([0, len(tokens)]))[-1].double()
        assert torch.linalg.norm(found - wanted) < tolerance * torch.linalg.norm(wanted)


@needs_pages
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_the_kernel_for_pages_equals_attention_over_gathered_pages(window, dtype, has_sinks):
    generator = torch.Generator("cuda").manual_seed(0)
    keys, values = torch.randn(2, 9, PAGE_SIZE, 2, 64, generator=generator, device="cuda", dtype=dtype)
    totals = [255, 256, 257, 700]
    q = torch.randn(307, 8, 64, generator=generator, device="cuda", dtype=dtype)

    def int32(values):
        return torch.tensor(values, dtype=torch.int32, device="cuda")

    seqs = varlen.PagedSequences(
        int32([0, 1, 6, 7, 307]),
        int32(totals),
        int32([0, 255, 511, 768, 1468]),
        int32([[4, 0, 0], [7, 0, 0], [8, 2, 0], [1, 6, 3]]),
        max_length=300,
        max_total=700,
    )
    sinks = torch.randn(8, generator=generator, device="cuda", dtype=dtype) if has_sinks else None
    spec = AttentionSpec(64**-0.5, window).of_heads(sinks=sinks)
    found = varlen.attend_pages(q, keys, values, seqs, spec).double()
    wanted = gather_and_attend(q.double(), keys.double(), values.double(), seqs, spec)
    assert torch.linalg.norm(found - wanted) < 0.01 * torch.linalg.norm(wanted)


@needs_pages
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("eager", [False, True])
def test_pages(window, eager):
    model, rng = build(CONFIG.replace(sliding_window=window), torch.bfloat16), random.Random(1)
    schedule = PageSchedule(random_texts(rng, 6, 700), n_pages=30, page_size=PAGE_SIZE)
    store = make_store(model, 30 * PAGE_SIZE)
    assert isinstance(store, PageStore)
    runner = ModelRunner(model, store)
    if eager:
        runner._graphs = None
    for _ in range(30):
        if lengths := random_lengths(schedule, rng, 300):
            check(model, schedule, *schedule.step(lengths), runner, 0.03)
        left = [i for i, text in enumerate(schedule.texts) if 0 < text.n_cached < len(text.tokens)]
        if left:
            check(model, schedule, *schedule.step(dict.fromkeys(left, 1)), runner, 0.03)
    assert eager or runner._graphs.n_captured


@needs_pages
def test_a_graph_is_captured_once_and_reads_updated_weights():
    model, rng = build(CONFIG, torch.bfloat16), random.Random(1)
    schedule = PageSchedule([[rng.randrange(1000) for _ in range(20)] for _ in range(3)], 10, PAGE_SIZE)
    runner = ModelRunner(model, make_store(model, 10 * PAGE_SIZE))
    check(model, schedule, *schedule.step({0: 5, 1: 3, 2: 9}), runner, 0.03)
    for _ in range(3):
        with torch.no_grad():
            model.head_weight.mul_(1.5)
        check(model, schedule, *schedule.step({0: 1, 1: 1, 2: 1}), runner, 0.03)
        assert runner._graphs.n_captured == 1


@pytest.mark.parametrize(
    "changes",
    [{}, {"sliding_window": 100}, {"attn_softcap": 5.0}, {"attn_sinks": True}, {"alibi_scale": 1.0}],
    ids=["plain", "window", "softcap", "sinks", "slopes"],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float32, 1e-3)])
def test_rows(changes, dtype, tolerance):
    model, rng = build(CONFIG.replace(**changes), dtype), random.Random(1)
    schedule = RowSchedule(model.config, random_texts(rng, 6, 700), (256, 512, 1024))
    runner = ModelRunner(model, RowStore.of(model))
    for _ in range(20):
        if lengths := random_lengths(schedule, rng, 300):
            check(model, schedule, *schedule.step(lengths), runner, tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_logprobs_of_completions_are_those_of_training(dtype):
    model = build(CONFIG, dtype)
    if reason := why_not_exact(model):
        pytest.skip(f"not exact on this GPU: {reason}")
    rng = random.Random(0)
    with GenerationEngine(model, exact=True) as engine:
        for prompt in random_texts(rng, 12, 300):
            engine.add(Request(tuple(prompt), GenerationConfig(max_new_tokens=rng.randint(1, 90))))
        completions = engine.run()
    for one in completions:
        tokens = torch.tensor([*one.prompt_ids, *one.token_ids], device="cuda")
        scored = logprobs(model, tokens, torch.tensor([0, len(tokens)], device="cuda"), exact=True)
        assert scored[len(one.prompt_ids) :].tolist() == list(one.logprobs)
