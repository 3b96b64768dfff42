"""Packed attention equals the formula written out, for each sequence alone."""

from __future__ import annotations

import pytest
import torch

from reallm.model.attention import masks
from reallm.model.attention.functional import AttentionSpec, attend_packed
from reallm.model.packed import PackedSequences

SLOPES = (0.5, 0.1, 0.02, 1.5)


def written_out(q, k, v, spec, sinks=None):
    """[L, H, D] queries, [L, K, D] keys and values: softmax over the scores a token may see, and a sink [H]."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = torch.einsum("ihd,jhd->hij", q, k) * spec.scale
    if spec.softcap:
        scores = spec.softcap * torch.tanh(scores / spec.softcap)
    i, j = torch.arange(len(q))[:, None], torch.arange(len(q))[None]
    if spec.slopes:
        scores = scores + torch.tensor(spec.slopes, dtype=scores.dtype)[:, None, None] * (j - i)
    seen = (j <= i) & ((i - j < spec.window) if spec.window else torch.ones((), dtype=torch.bool))
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks[:, None, None].expand(-1, len(q), 1)), dim=-1)
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1)[..., : len(q)], v)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 3, 8, 1000])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("has_sinks", [False, True])
@pytest.mark.parametrize("slopes", [None, SLOPES])
def test_packed_sequences_attend_only_to_themselves(monkeypatch, n_kv_heads, window, softcap, has_sinks, slopes):
    monkeypatch.setattr(masks, "CHUNK", 4)
    torch.manual_seed(1)
    lengths = [5, 1, 0, 13, 8]
    q = torch.randn(sum(lengths), 4, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(sum(lengths), n_kv_heads, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    sinks = torch.randn(4, dtype=torch.float64, requires_grad=True) if has_sinks else None
    spec = AttentionSpec(scale=0.3, window=window, softcap=softcap, slopes=slopes).of_heads(sinks=sinks)

    out = attend_packed(q, k, v, PackedSequences.from_lengths(lengths), spec)
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    expected = torch.cat([written_out(*part, spec, sinks) for part in parts])
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)

    cotangent = torch.randn_like(out)
    inputs = (q, k, v) if sinks is None else (q, k, v, sinks)
    got = torch.autograd.grad(out, inputs, cotangent)
    want = torch.autograd.grad(expected, inputs, cotangent)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_dropout_is_for_training_only():
    from reallm.model.config import ReaLModelConfig
    from reallm.model.transformer import Transformer

    config = ReaLModelConfig(1, 16, 2, 2, 8, 16, 20, 32, attn_dropout=0.5, residual_dropout=0.5, embedding_dropout=0.5)
    model = Transformer(config)
    model.init_weights(0)
    tokens, bounds = torch.arange(10), torch.tensor([0, 10])
    model.eval()
    assert torch.equal(model(tokens, bounds), model(tokens, bounds))
    model.train()
    assert not torch.equal(model(tokens, bounds), model(tokens, bounds))
