"""The CUDA path against the CPU path: the packed kernel, training in half precision, generation."""

from __future__ import annotations

import pytest
import torch

from reallm.generation.decode import decode
from reallm.generation.sampling import SamplingConfig
from reallm.model import attention
from reallm.model.attention import AttentionSpec, attend_packed
from reallm.model.config import ReaLModelConfig
from reallm.model.sequences import Sequences
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
def test_the_packed_kernel_equals_one_call_a_sequence(monkeypatch, n_kv_heads, window, dtype):
    generator = torch.Generator().manual_seed(1)
    q = torch.randn(sum(LENGTHS), 8, 64, generator=generator).to("cuda", dtype).requires_grad_()
    k, v = (
        torch.randn(sum(LENGTHS), n_kv_heads, 64, generator=generator).to("cuda", dtype).requires_grad_() for _ in "kv"
    )
    seqs, spec = Sequences.from_lengths(LENGTHS, device="cuda"), AttentionSpec(64**-0.5, window)
    cotangent = torch.randn(sum(LENGTHS), 8, 64, generator=generator).to("cuda", dtype)

    assert attention._varlen_kernel_fits(q, spec)
    packed = attend_packed(q, k, v, seqs, spec)
    gradients = torch.autograd.grad(packed, (q, k, v), cotangent)
    monkeypatch.setattr(attention, "_varlen_kernel_fits", lambda q, spec: False)
    alone = attend_packed(q.double(), k.double(), v.double(), seqs, spec)
    exact = torch.autograd.grad(alone, (q, k, v), cotangent.double())
    for got, want in zip((packed, *gradients), (alone, *exact), strict=True):
        # 8 bits of mantissa in bfloat16; the norm of the error over the norm of the result
        assert torch.linalg.norm(got.double() - want.double()) < 0.01 * torch.linalg.norm(want.double())


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 40}, {"attn_softcap": 5.0}, {"tied_embeddings": True}])
def test_logits_equal_those_of_the_cpu(changes):
    tokens, bounds = batch()
    on_cpu = build(CONFIG.replace(**changes), torch.float64, "cpu")(tokens, bounds)
    single = build(CONFIG.replace(**changes), torch.float32, "cuda")(tokens.cuda(), bounds)
    half = build(CONFIG.replace(**changes), torch.bfloat16, "cuda")(tokens.cuda(), bounds.cuda())
    torch.testing.assert_close(single.cpu().double(), on_cpu, rtol=1e-3, atol=1e-3)
    assert torch.linalg.norm(half.cpu().double() - on_cpu) < 0.03 * torch.linalg.norm(on_cpu)


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


def test_greedy_text_equals_that_of_the_cpu():
    prompts = [[1, 2, 3], [4], list(range(40))]
    sampling = SamplingConfig(max_new_tokens=16, temperature=0)
    on_cpu = decode(build(CONFIG, torch.float32, "cpu").eval(), prompts, sampling)
    on_gpu = decode(build(CONFIG, torch.float32, "cuda").eval(), prompts, sampling)
    assert [completion.token_ids for completion in on_cpu] == [completion.token_ids for completion in on_gpu]


def test_gradient_checkpointing_on_the_gpu_changes_no_gradient():
    tokens, bounds = batch()
    gradients = []
    for on in (False, True):
        model = build(CONFIG, torch.bfloat16, "cuda").train()
        model.gradient_checkpointing = on
        model(tokens.cuda(), bounds).float().square().mean().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=0.02, atol=1e-4)
