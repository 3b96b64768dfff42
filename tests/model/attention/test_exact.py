"""Exact attention equals packed attention, and a token's result is the same bits whatever else is computed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reallm.model.attention import exact
from reallm.model.attention.exact import (
    CHUNK,
    ExactAttention,
    attend_chunks,
    attend_rows,
    chunk_mask,
    key_range,
    why_attention_is_not_exact,
)
from reallm.model.attention.functional import AttentionSpec, attend_packed
from reallm.model.attention.masks import rows_mask
from reallm.model.forward_context import ForwardContext
from reallm.model.packed import PackedSequences

LENGTHS = [5, 1, 0, CHUNK, CHUNK + 1, 3, 2 * CHUNK - 1]
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.1, -3.0])
SLOPES = (1.5, 0.5, 0.1, 0.02, 0.004)
SPECS = {
    "plain": AttentionSpec(scale=0.3),
    "window within a chunk": AttentionSpec(scale=0.3, window=7),
    "window of a chunk": AttentionSpec(scale=0.3, window=CHUNK),
    "window over chunks": AttentionSpec(scale=0.3, window=CHUNK + 20),
    "soft cap": AttentionSpec(scale=0.3, softcap=2.0),
    "soft cap and window": AttentionSpec(scale=0.3, softcap=2.0, window=33),
    "sinks": AttentionSpec(scale=0.3, sinks=SINKS),
    "slopes": AttentionSpec(scale=0.3, slopes=SLOPES),
    "slopes, sinks and window": AttentionSpec(scale=0.3, slopes=SLOPES, sinks=SINKS, window=33),
    "sinks and window": AttentionSpec(scale=0.3, sinks=SINKS, window=7),
}
HEADS = [(4, 2), (3, 3), (5, 1)]
HEAD_DIM = 16


def heads_of(n_q_heads: int, n_kv_heads: int, *, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = (n_q_heads, n_kv_heads, n_kv_heads)
    q, k, v = (torch.randn(sum(LENGTHS), n, HEAD_DIM, generator=generator, dtype=dtype) for n in sizes)
    return q, k, v


def of_heads(spec: AttentionSpec, n_q_heads: int) -> AttentionSpec:
    sinks = None if spec.sinks is None else spec.sinks[:n_q_heads]
    return spec.of_heads(sinks=sinks, slopes=None if spec.slopes is None else spec.slopes[:n_q_heads])


def attend(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, *, checkpointed: bool = False) -> Tensor:
    seqs = PackedSequences.from_lengths(LENGTHS)
    attention = ExactAttention()
    return attention(q, k, v, ForwardContext(seqs, (), attention, checkpoint_attention=checkpointed), spec, None)


@pytest.mark.parametrize(("n_q_heads", "n_kv_heads"), HEADS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("checkpointed", [False, True])
def test_values_and_gradients_are_those_of_packed_attention(
    n_q_heads: int, n_kv_heads: int, spec: AttentionSpec, checkpointed: bool
) -> None:
    inputs = [x.requires_grad_() for x in heads_of(n_q_heads, n_kv_heads, dtype=torch.float64)]
    spec = of_heads(spec, n_q_heads)
    out = attend(*inputs, spec, checkpointed=checkpointed)
    expected = attend_packed(*inputs, PackedSequences.from_lengths(LENGTHS), spec)
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-12)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for ours, theirs in zip(*(torch.autograd.grad(each, inputs, grad) for each in (out, expected)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize(("n_q_heads", "n_kv_heads"), HEADS)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_token_has_the_same_bits_in_parts_of_its_sequence_and_in_a_batch_of_rows(
    n_threads: int, n_q_heads: int, n_kv_heads: int, spec: AttentionSpec
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        if reason := why_attention_is_not_exact(n_q_heads, n_kv_heads, HEAD_DIM):
            pytest.skip(f"not claimed on this machine: {reason}")
        q, k, v = heads_of(n_q_heads, n_kv_heads)
        spec = of_heads(spec, n_q_heads)
        whole = attend(q, k, v, spec).split(LENGTHS)
        # longer than any sequence, with other numbers behind their ends
        capacity = 4 * CHUNK
        mask = chunk_mask(capacity, spec.window, q.dtype, q.device, spec.slopes)
        for i, (queries, *of_sequence) in enumerate(zip(*(x.split(LENGTHS) for x in (q, k, v)), strict=True)):
            n = LENGTHS[i]
            rows = torch.full((2, 3, n_kv_heads, capacity, HEAD_DIM), 9.0)
            for held, new in zip(rows, of_sequence, strict=True):
                held[1, :, :n] = new.transpose(0, 1)
            keys, values = rows
            for start, stop in {(0, n), (n // 2, n), (n // 3, n - n // 4), (n - 1, n)}:
                if not 0 <= start < stop:
                    continue
                part = attend_chunks(queries[start:stop], keys[1], values[1], stop, mask, spec)
                assert torch.equal(part, whole[i][start:stop]), (i, start, stop)
                left, right = key_range(start, spec.window)
                totals = [right, start + 1, right - CHUNK + 1]
                seen = rows_mask(totals, left, right, spec.window, q.dtype, q.device, spec.slopes)
                in_rows = queries[start].expand(3, -1, -1)
                row = attend_rows(in_rows, keys[:, :, left:right], values[:, :, left:right], seen, spec)[1]
                assert torch.equal(row, whole[i][start]), (i, start)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("position", "window", "expected"),
    [
        (0, None, (0, CHUNK)),
        (CHUNK - 1, None, (0, CHUNK)),
        (CHUNK, None, (0, 2 * CHUNK)),
        (5 * CHUNK, 1, (5 * CHUNK, 6 * CHUNK)),
        (5 * CHUNK + 9, 2, (4 * CHUNK, 6 * CHUNK)),
        (5 * CHUNK, CHUNK + 1, (4 * CHUNK, 6 * CHUNK)),
        (5 * CHUNK, CHUNK + 2, (3 * CHUNK, 6 * CHUNK)),
    ],
)
def test_all_queries_of_a_chunk_read_the_same_keys(
    position: int, window: int | None, expected: tuple[int, int]
) -> None:
    assert key_range(position, window) == expected


def test_attention_that_depends_on_the_batch_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = exact.sdpa
    probe = exact._why_attention_differs.__wrapped__
    assert why_attention_is_not_exact(4, 2, 8) == probe(4, 2, 8, torch.get_num_threads())
    monkeypatch.setattr(exact, "sdpa", lambda q, *rest: right(q, *rest) + q.shape[-2])
    assert "attention depends on the number of queries on 1 thread" in (probe(4, 2, 8, 1) or "")
    monkeypatch.setattr(exact, "sdpa", lambda q, *rest: right(q, *rest) + (q.dim() == 4) * len(q))
    assert "attention depends on the number of sequences on 2 threads" in (probe(4, 2, 8, 2) or "")
