"""Attention with sinks, on the CPU and by the kernel for packed sequences, equals the softmax written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from reallm.model.attention import varlen
from reallm.model.attention.functional import AttentionSpec, attend_packed, attend_sequence, sdpa
from reallm.model.config import ReaLModelConfig
from reallm.model.packed import PackedSequences
from reallm.model.transformer import Transformer
from tests.helpers.tiny_config import TINY

LENGTHS = [5, 1, 13, 300]
SINKS = torch.tensor([0.7, -2.0, 4.0, 0.0], dtype=torch.float64)


def inputs_of(dtype: torch.dtype) -> list[Tensor]:
    """Queries of 4 heads, keys and values of 2, and sinks."""
    generator = torch.Generator().manual_seed(1)
    heads = [torch.randn(sum(LENGTHS), n, 16, generator=generator, dtype=torch.float64) for n in (4, 2, 2)]
    return [x.to(dtype).requires_grad_() for x in (*heads, SINKS)]


def written_out(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None) -> Tensor:
    """Attention of one sequence, [L, H, D]; the softmax has one more score than there are keys."""
    k, v = (x.repeat_interleave(2, dim=1) for x in (k, v))
    scores = 0.3 * torch.einsum("ihd,jhd->hij", q, k)
    distances = torch.arange(len(q))[:, None] - torch.arange(len(q))
    seen = (distances >= 0) & (distances < (window or len(q)))
    exponentials = scores.exp() * seen
    weights = exponentials / (exponentials.sum(-1, keepdim=True) + sinks.exp()[:, None, None])
    return torch.einsum("hij,jhd->ihd", weights, v)


def values_and_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    cotangent = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return [out, *torch.autograd.grad(out, inputs, cotangent.to(out.dtype))]


def reference(window: int | None, dtype: torch.dtype) -> list[Tensor]:
    """Values and gradients, of inputs rounded to a dtype, in float64."""
    inputs = [x.detach().double().requires_grad_() for x in inputs_of(dtype)]
    q, k, v, sinks = inputs
    parts = zip(*(x.split(LENGTHS) for x in (q, k, v)), strict=True)
    return values_and_gradients(torch.cat([written_out(*part, sinks, window) for part in parts]), inputs)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach()
    return float(torch.linalg.norm(found - wanted) / torch.linalg.norm(wanted))


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 0.02)]
)
def test_values_and_gradients_are_those_of_the_formula(
    dtype: torch.dtype, tolerance: float, window: int | None
) -> None:
    q, k, v, sinks = inputs = inputs_of(dtype)
    out = attend_packed(
        q, k, v, PackedSequences.from_lengths(LENGTHS), AttentionSpec(0.3, window).of_heads(sinks=sinks)
    )
    assert out.dtype == dtype
    for found, wanted in zip(values_and_gradients(out, inputs), reference(window, dtype), strict=True):
        assert relative_error(found, wanted) < tolerance


def test_a_very_low_sink_has_no_effect_and_a_very_high_one_takes_all_weight() -> None:
    q, k, v, _ = (x.detach() for x in inputs_of(torch.float32))
    q, k, v = q[:9], k[:9].transpose(0, 1), v[:9].transpose(0, 1)
    spec = AttentionSpec(0.3)
    without = attend_sequence(q, k, v, spec)
    low, high = (attend_sequence(q, k, v, spec.of_heads(sinks=torch.full((4,), sink))) for sink in (-1e4, 1e4))
    torch.testing.assert_close(low, without)
    assert not high.any()


def test_it_keeps_no_scores_for_the_backward_pass() -> None:
    n, saved = 600, []
    q, k, v = (torch.randn(n_heads, n, 16, requires_grad=True) for n_heads in (4, 2, 2))
    spec = AttentionSpec(0.3).of_heads(sinks=torch.zeros(4, requires_grad=True))

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sdpa(q, k, v, None, spec, causal=True)
    assert max(saved) == 4 * n * 16


class FakeKernel:
    """Stands in for torch's kernel for packed sequences, which needs a GPU; computed by the CPU's kernel."""

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, cu_q: Tensor, cu_k: Tensor, max_q: int, max_k: int, **options: Any
    ) -> Any:
        if "block_table" in options and options["block_table"] is not None:
            pages, totals = options["block_table"].long(), options["seqused_k"].tolist()
            rows = [[x[ids].flatten(0, 1)[:n] for ids, n in zip(pages, totals, strict=True)] for x in (k, v)]
        else:
            rows = [list(x.split(cu_k.diff().tolist())) for x in (k, v)]
        results = []
        for queries, keys, values in zip(q.split(cu_q.diff().tolist()), *rows, strict=True):
            mask = self._mask(len(queries), len(keys), options["window_size"], q.dtype)
            forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
            heads = [x.transpose(0, 1)[None] for x in (queries, keys, values)]
            out, lse = forward(*heads, attn_mask=mask, scale=options["scale"])
            results.append((out[0].transpose(0, 1), lse[0]))
        out, lse = torch.cat([out for out, _ in results]), torch.cat([lse for _, lse in results], dim=1)
        return out if options.get("return_aux") is None else (out, lse)

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, cu_q: Tensor, cu_k: Tensor,
        max_q: int, max_k: int, is_causal: bool, rng_state: Tensor, scale: float, window_size: list[int],
    ) -> tuple[Tensor, ...]:  # fmt: skip
        lengths = cu_q.diff().tolist()
        assert is_causal == (window_size == [-1, 0])
        found = []
        for *heads, stats in zip(*(x.split(lengths) for x in (grad, q, k, v, out)), lse.split(lengths, 1), strict=True):
            backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
            mask = self._mask(len(heads[1]), len(heads[1]), window_size, q.dtype)
            parts = [x.transpose(0, 1)[None] for x in heads]
            grads = backward(*parts, stats[None], 0.0, False, attn_mask=mask, scale=scale)
            found.append([x[0].transpose(0, 1) for x in grads])
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _mask(self, n_queries: int, n_keys: int, window: Any, dtype: torch.dtype) -> Tensor:
        distances = torch.arange(n_keys - n_queries, n_keys)[:, None] - torch.arange(n_keys)
        seen = (distances >= 0) & ((distances <= window[0]) | (window[0] == -1))
        return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, -torch.inf)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> FakeKernel:
    fake = FakeKernel()
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", fake)
    monkeypatch.setattr(torch.ops.torch_attn, "_varlen_attn_backward", fake.backward)
    monkeypatch.setattr(varlen, "_parameters", lambda: frozenset({"return_aux", "enable_gqa"}))
    return fake


@pytest.mark.parametrize("window", [None, 7])
def test_the_kernel_for_packed_sequences_gets_what_makes_its_gradients_right(
    kernel: FakeKernel, window: int | None
) -> None:
    q, k, v, sinks = inputs = inputs_of(torch.float64)
    seqs = PackedSequences.from_lengths(LENGTHS)
    out = varlen.attend_packed(q, k, v, seqs, AttentionSpec(0.3, window).of_heads(sinks=sinks))
    for found, wanted in zip(values_and_gradients(out, inputs), reference(window, torch.float64), strict=True):
        assert relative_error(found, wanted) < 1e-12


def test_attention_over_pages_is_that_over_whole_sequences(kernel: FakeKernel) -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 5, 4, 2, 16, generator=generator, dtype=torch.float64)
    q = torch.randn(4, 4, 16, generator=generator, dtype=torch.float64)
    bounds, totals = torch.tensor([0, 1, 4]), torch.tensor([6, 11])
    pages = torch.tensor([[3, 0, 0], [4, 1, 2]])
    seqs = varlen.PagedSequences(bounds, totals, torch.tensor([0, 6, 17]), pages, max_length=3, max_total=11)
    spec = AttentionSpec(0.3).of_heads(sinks=SINKS)
    found = varlen.attend_pages(q, keys, values, seqs, spec)
    rows = [
        [x[ids].flatten(0, 1)[:n].transpose(0, 1) for x in (keys, values)] for ids, n in zip(pages, totals, strict=True)
    ]
    wanted = [attend_sequence(new, *row, spec) for new, row in zip(q.split([1, 3]), rows, strict=True)]
    torch.testing.assert_close(found, torch.cat(wanted))


def network(**changes: Any) -> Transformer:
    config: ReaLModelConfig = TINY.replace(attn_sinks=True, init_std=0.3, **changes)
    model = Transformer(config)
    model.init_weights(0)
    return model


def test_sinks_are_a_parameter_of_each_query_head_and_begin_like_matrices() -> None:
    model = network(n_q_heads=4)
    names = [name for name, _ in model.named_parameters() if name.endswith("sinks")]
    assert names == [f"layers.{number}.attn.sinks" for number in model.block_numbers]
    sinks = torch.stack([model.get_parameter(name) for name in names])
    assert sinks.shape == (TINY.n_layers, 4)
    assert len(sinks.unique()) == sinks.numel()
    assert sinks.abs().max() < 4 * 0.3


def test_weights_drop_out_after_the_softmax_and_sinks_stay() -> None:
    q, k, v = (torch.randn(n_heads, 4000, 8, generator=torch.Generator().manual_seed(n_heads)) for n_heads in (1, 1, 1))
    spec = AttentionSpec(0.3).of_heads(sinks=torch.tensor([8.0]))
    torch.manual_seed(0)
    dropped = sdpa(q, k, v.abs(), None, AttentionSpec(0.3, dropout=0.5).of_heads(sinks=spec.sinks))
    kept = sdpa(q, k, v.abs(), None, spec)
    torch.testing.assert_close(dropped.mean(), kept.mean(), rtol=0.02, atol=0.0)
