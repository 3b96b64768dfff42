"""The gated delta rule on packed sequences computes what transformers' functions compute of each sequence alone."""

from __future__ import annotations

import pytest
import torch

from reallm.model.attention.gated_delta_rule import gated_delta_rule

LENGTHS = (150, 1, 10, 70, 64, 65, 1)
KEY_HEADS, HEADS, KEY_DIM, VALUE_DIM = 2, 4, 6, 5


class WideTorch:
    """torch whose float32 is float64: transformers' functions compute in float32, whatever they are given."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@pytest.fixture
def modeling(monkeypatch):
    from transformers.models.qwen3_next import modeling_qwen3_next

    monkeypatch.setattr(modeling_qwen3_next, "torch", WideTorch())
    return modeling_qwen3_next


def inputs(lengths):
    """Queries, keys, values, decays, learning rates and initial states, float64."""
    generator, n = torch.Generator().manual_seed(3), sum(lengths)

    def drawn(*shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    heads = drawn(n, KEY_HEADS, KEY_DIM), drawn(n, KEY_HEADS, KEY_DIM), drawn(n, HEADS, VALUE_DIM)
    rates = -drawn(n, HEADS).exp(), drawn(n, HEADS).sigmoid()
    return [x.requires_grad_() for x in (*heads, *rates, drawn(len(lengths), HEADS, KEY_DIM, VALUE_DIM))]


def one_by_one(function, *tensors, lengths):
    """Outputs and final states of transformers' function, called for each sequence."""
    *packed, states = tensors
    parts = zip(*(x.split(lengths) for x in packed), states.split(1), strict=True)
    results = [
        function(*(x[None] for x in of_one), initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True)
        for *of_one, state in parts
    ]
    return torch.cat([out[0] for out, _ in results]), torch.cat([final for _, final in results])


@pytest.mark.parametrize("kind", ["chunk", "recurrent"])
def test_outputs_final_states_and_gradients_are_those_of_transformers(modeling, kind):
    lengths = LENGTHS if kind == "chunk" else (1, 1, 1)
    *packed, state = tensors = inputs(lengths)
    results = gated_delta_rule(*packed, lengths, state)
    expected = one_by_one(getattr(modeling, f"torch_{kind}_gated_delta_rule"), *tensors, lengths=lengths)
    torch.testing.assert_close(results, expected, rtol=1e-12, atol=1e-12)
    cotangents = [torch.randn_like(result) for result in results]
    gradients, wanted = (
        torch.autograd.grad(sum((x * y).sum() for x, y in zip(of_one, cotangents, strict=True)), tensors)
        for of_one in (results, expected)
    )
    torch.testing.assert_close(gradients, wanted, rtol=1e-12, atol=1e-12)


def test_a_sequence_in_parts_beside_others_is_what_it_is_as_a_whole():
    """As in generation: a prompt in parts, then single tokens, beside sequences with more and fewer tokens."""
    *packed, _ = inputs(LENGTHS)
    with torch.no_grad():
        whole, final = gated_delta_rule(*packed, LENGTHS)
        sequences = list(zip(*(x.split(LENGTHS) for x in packed), strict=True))
        outputs, states, done = [[] for _ in LENGTHS], torch.zeros_like(final), [0] * len(LENGTHS)
        for step in range(200):
            rows = [row for row, length in enumerate(LENGTHS) if done[row] < length]
            if not rows:
                break
            sizes = [min(1 if (step + row) % 3 else 40, LENGTHS[row] - done[row]) for row in rows]
            parts = [[x[done[row] : done[row] + n] for x in sequences[row]] for row, n in zip(rows, sizes, strict=True)]
            out, states[rows] = gated_delta_rule(*map(torch.cat, zip(*parts, strict=True)), sizes, states[rows])
            for row, n, part in zip(rows, sizes, out.split(sizes), strict=True):
                outputs[row].append(part)
                done[row] += n
    torch.testing.assert_close(torch.cat([part for each in outputs for part in each]), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(states, final, rtol=1e-12, atol=1e-12)


def test_half_precision_is_computed_in_float32():
    *packed, state = [x.detach().bfloat16() for x in inputs(LENGTHS)]
    out, final = gated_delta_rule(*packed, LENGTHS, state)
    wanted, wanted_final = gated_delta_rule(*(x.float() for x in packed), LENGTHS, state.float())
    assert (out.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(final, wanted_final)
    assert torch.equal(out, wanted.bfloat16())
