"""The CUDA path against the CPU path: the packed kernel, training in half precision, generation."""

from __future__ import annotations

import pytest
import torch

from reallm.errors import ConfigError
from reallm.generation.config import GenerationConfig
from reallm.generation.generate import generate_tokens
from reallm.generation.random import StreamPosition, hash_key
from reallm.generation.sampling import sample
from reallm.model import linear_cross_entropy as losses
from reallm.model.attention import varlen
from reallm.model.attention.functional import AttentionSpec, attend_packed
from reallm.model.compile import check_compiler
from reallm.model.config import MoEConfig, ReaLModelConfig, RopeConfig
from reallm.model.packed import PackedSequences
from reallm.model.transformer import Transformer

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU: run `tox run -e gpu` on a machine that has one"
)

CONFIG = ReaLModelConfig(
    n_layers=4, hidden_size=256, n_q_heads=8, n_kv_heads=2, head_dim=32, intermediate_size=512, vocab_size=1000,
    max_positions=1024, init_std=0.05,
)  # fmt: skip
LENGTHS = [7, 1, 300, 64, 129]


def build(config: ReaLModelConfig, dtype: torch.dtype, device: str) -> Transformer:
    model = Transformer(config)
    model.init_weights(0)
    return model.to(device, dtype)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 1000, (sum(LENGTHS),), generator=torch.Generator().manual_seed(0))
    return tokens, torch.tensor([0, *LENGTHS]).cumsum(0)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 8])
@pytest.mark.parametrize("window", [None, 1, 50])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_the_packed_kernel_equals_one_call_a_sequence(monkeypatch, n_kv_heads, window, dtype, has_sinks):
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(sum(LENGTHS), 8, 64, generator=generator).to("cuda", dtype).requires_grad_()
    k, v = (
        torch.randn(sum(LENGTHS), n_kv_heads, 64, generator=generator).to("cuda", dtype).requires_grad_() for _ in "kv"
    )
    seqs = PackedSequences.from_lengths(LENGTHS, device="cuda")
    sinks = torch.randn(8, generator=generator).to("cuda", dtype).requires_grad_()
    spec, inputs = AttentionSpec(64**-0.5, window), (q, k, v)
    if has_sinks:
        spec, inputs = spec.of_heads(sinks=sinks), (*inputs, sinks)
    cotangent = torch.randn(sum(LENGTHS), 8, 64, generator=generator).to("cuda", dtype)

    assert varlen.supports(q.device, dtype, 64, spec)
    packed = attend_packed(q, k, v, seqs, spec)
    gradients = torch.autograd.grad(packed, inputs, cotangent)
    monkeypatch.setattr(varlen, "supports", lambda *_: False)
    alone = attend_packed(q.double(), k.double(), v.double(), seqs, spec)
    exact = torch.autograd.grad(alone, inputs, cotangent.double())
    for got, want in zip((packed, *gradients), (alone, *exact), strict=True):
        # 8 bits of mantissa in bfloat16; the norm of the error over the norm of the result
        assert torch.linalg.norm(got.double() - want.double()) < 0.01 * torch.linalg.norm(want.double())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 40},
        {"attn_softcap": 5.0},
        {"attn_sinks": True, "sliding_window": (None, 40, None, 40)},
        {"rope": None, "alibi_scale": 1.0},
        {"tied_embeddings": True},
        {"norm_offset": 1.0, "norm_placement": "sandwich", "qk_norm": "head", "embedding_multiplier": 16.0},
        {"norm": "layer", "norm_bias": True, "mlp": "plain", "rope": None, "learned_positions": True},
        {"parallel_residual": True, "shared_norm": True, "rope": RopeConfig(rotary_dim=16, interleaved=True)},
        {"rope": (None, RopeConfig(), None, RopeConfig(theta=1e6)), "sliding_window": (40, None, 40, None)},
    ],
)
def test_logits_equal_those_of_the_cpu(changes):
    tokens, bounds = batch()
    on_cpu = build(CONFIG.replace(**changes), torch.float64, "cpu")(tokens, bounds)
    single = build(CONFIG.replace(**changes), torch.float32, "cuda")(tokens.cuda(), bounds)
    half = build(CONFIG.replace(**changes), torch.bfloat16, "cuda")(tokens.cuda(), bounds.cuda())
    torch.testing.assert_close(single.cpu().double(), on_cpu, rtol=1e-3, atol=1e-3)
    assert torch.linalg.norm(half.cpu().double() - on_cpu) < 0.03 * torch.linalg.norm(on_cpu)


@pytest.mark.parametrize("top_k", [1, 2])
def test_experts_equal_those_of_the_cpu(top_k):
    """In float32 in a loop, in bfloat16 by torch's grouped kernel, forward and backward."""
    config = CONFIG.replace(moe=MoEConfig(n_experts=8, top_k=top_k, intermediate_size=128))
    tokens, bounds = batch()
    cotangent = torch.randn(sum(LENGTHS), 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = build(config, torch.float64, "cpu")
    (exact(tokens, bounds) * cotangent).sum().backward()
    for dtype, tolerance in [(torch.float32, 1e-3), (torch.bfloat16, 0.1)]:  # a token near the border goes elsewhere
        model = build(config, dtype, "cuda")
        (model(tokens.cuda(), bounds) * cotangent.to("cuda", dtype)).sum().backward()
        for name in ("layers.1.mlp.experts.down.weight", "layers.1.mlp.router.weight", "layers.0.tokens.weight"):
            got, want = (each.get_parameter(name).grad.cpu().double() for each in (model, exact))
            assert torch.linalg.norm(got - want) < tolerance * torch.linalg.norm(want), name


def test_the_fused_loss_and_its_gradients_equal_those_of_the_cpu():
    tokens, bounds = batch()
    gradients = []
    for dtype, device in [(torch.float64, "cpu"), (torch.float32, "cuda")]:
        model = build(CONFIG, dtype, device)
        hidden = model.hidden(tokens.to(device), bounds)
        model.cross_entropy(hidden[:-1], tokens[1:].to(device)).loss_sum.backward()
        gradients.append({name: parameter.grad.cpu().double() for name, parameter in model.named_parameters()})
    for name, exact in gradients[0].items():
        assert torch.linalg.norm(gradients[1][name] - exact) < 1e-3 * torch.linalg.norm(exact), name


@pytest.mark.parametrize("n_vocab", [300, 50_257])
def test_sampling_equals_that_of_the_cpu(monkeypatch, n_vocab):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings = [
        {"temperature": 0},
        {"temperature": 1.0},
        {"temperature": 0.6, "model_logprobs": True},
        {"top_k": 20, "top_p": 0.9, "kept_ids": True},
        {"top_p": 0.95, "min_p": 0.01, "kept_mass": True, "top_logprobs": 3},
    ]
    configs = [GenerationConfig(**fields) for fields in settings] * 8
    streams = [StreamPosition(3, hash_key(row), 0, row) for row in range(len(configs))]
    banned = [(1, 2) if row % 3 == 0 else () for row in range(len(configs))]
    logits = torch.randn(len(configs), n_vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    wanted = sample(logits, configs, streams, banned=banned)
    torch.use_deterministic_algorithms(True)  # cumulative sums of floating-point numbers are refused in this mode
    try:
        found = sample(logits.cuda(), configs, streams, banned=banned)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(found.token_ids.cpu(), wanted.token_ids)
    torch.testing.assert_close(found.logprobs.cpu(), wanted.logprobs, rtol=1e-12, atol=1e-12)
    assert [*map(list, found.kept_ids)] == [*map(list, wanted.kept_ids)]


def test_greedy_text_equals_that_of_the_cpu():
    prompts = [[1, 2, 3], [4], list(range(40))]
    sampling = GenerationConfig(max_new_tokens=16, temperature=0)
    on_cpu = generate_tokens(build(CONFIG, torch.float32, "cpu").eval(), prompts, sampling)
    on_gpu = generate_tokens(build(CONFIG, torch.float32, "cuda").eval(), prompts, sampling)
    assert [completion.token_ids for completion in on_cpu] == [completion.token_ids for completion in on_gpu]


def gradients(model: Transformer) -> list[torch.Tensor]:
    tokens, bounds = batch()
    torch.manual_seed(0)  # of dropout
    model(tokens.cuda(), bounds).float().square().mean().backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("mode", ["selective", "full"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 40},
        {"qk_norm": "head"},
        {"attn_softcap": 5.0},
        {"attn_sinks": True},
        {"attn_dropout": 0.2},
        {"residual_dropout": 0.2, "norm": "layer"},
    ],
)
def test_gradient_checkpointing_on_the_gpu_changes_no_gradient(changes, mode):
    plain, saving = (build(CONFIG.replace(**changes), torch.bfloat16, "cuda").train() for _ in range(2))
    saving.gradient_checkpointing = mode
    for want, got in zip(gradients(plain), gradients(saving), strict=True):
        # the backward pass of the packed kernel adds up in an order that changes from run to run
        torch.testing.assert_close(got, want, rtol=0.02, atol=1e-4)


@pytest.mark.parametrize(
    "changes", [{}, {"attn_softcap": 5.0}, {"norm": "layer", "mlp": "plain", "activation": "gelu"}]
)
def test_each_kind_of_checkpointing_leaves_less_on_the_gpu(changes):
    tokens, bounds = batch()
    kept = []
    for mode in ("none", "selective", "full"):
        model = build(CONFIG.replace(**changes), torch.bfloat16, "cuda").train()
        model.gradient_checkpointing = mode
        before = torch.cuda.memory_allocated()
        hidden = model.hidden(tokens.cuda(), bounds)
        kept.append(torch.cuda.memory_allocated() - before)
        del hidden, model
    assert kept[0] > kept[1] > kept[2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_has_deterministic_algorithms(monkeypatch, dtype):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setitem(losses.LOGIT_CHUNK_BYTES, "cuda", 4 * 1000 * 100)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=generator).to("cuda", dtype).requires_grad_() for n in (350, 1000))
    targets = torch.arange(350, device="cuda")

    def numbers() -> tuple[torch.Tensor, ...]:
        result = losses.head_cross_entropy(hidden, targets, losses.OutputHead(weight))
        return result.nll, *torch.autograd.grad(result.loss_sum, (hidden, weight))

    torch.use_deterministic_algorithms(True)
    try:
        assert all(torch.equal(first, second) for first, second in zip(numbers(), numbers(), strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*", "ignore::UserWarning:torch.*")
@pytest.mark.parametrize("mode", ["none", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_blocks_equal_the_others_over_changing_lengths(dtype, mode):
    try:
        check_compiler(torch.device("cuda"))
    except ConfigError as error:
        pytest.skip(str(error))
    torch.compiler.reset()
    from torch._dynamo.utils import counters

    counters.clear()
    plain, compiled = (build(CONFIG, dtype, "cuda").train() for _ in range(2))
    compiled.compile_blocks()
    compiled.gradient_checkpointing = mode
    counts = []
    for lengths in ([70, 3], [300, 64, 129], [20] * 7, [501]):
        tokens = torch.randint(0, 1000, (sum(lengths),), generator=torch.Generator().manual_seed(0)).cuda()
        bounds = torch.tensor([0, *lengths]).cumsum(0)
        found = []
        for model in (plain, compiled):
            model.zero_grad()
            model.cross_entropy(model.hidden(tokens, bounds)[:-1], tokens[1:]).loss_sum.backward()
            found.append([parameter.grad for parameter in model.parameters()])
        for want, got in zip(*found, strict=True):
            # compiled code keeps float32 within a fused formula, where each operation rounds to bfloat16 otherwise
            limit = 1e-3 if dtype == torch.float32 else 0.05
            assert torch.linalg.norm(got.double() - want.double()) < limit * torch.linalg.norm(want.double())
        counts.append(counters["stats"]["unique_graphs"])
    assert 0 < counts[1] == counts[-1]
