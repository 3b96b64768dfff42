"""The short causal convolution, compared with torch's, over packs, pieces and single tokens."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reallm.model.causal_conv import CausalConv
from reallm.model.packed import PackedSequences

LENGTHS = [5, 1, 2, 9]


def conv_of(size, *, bias, dtype=torch.float64):
    conv = CausalConv(6, size, bias=bias).to(dtype)
    with torch.no_grad():
        for number, parameter in enumerate(conv.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(number))
    return conv


def inputs(dtype=torch.float64):
    return torch.randn(sum(LENGTHS), 6, generator=torch.Generator().manual_seed(7), dtype=dtype)


def by_torch(conv, x):
    """Each sequence alone, behind zeros."""
    size = conv.weight.shape[-1]
    return torch.cat(
        [
            F.conv1d(F.pad(part.t(), (size - 1, 0))[None], conv.weight, conv.bias, groups=6)[0].t()
            for part in x.split(LENGTHS)
        ]
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_each_sequence_of_a_pack_is_convolved_alone(size, bias):
    conv, x = conv_of(size, bias=bias), inputs().requires_grad_()
    found, _ = conv(x, PackedSequences.from_lengths(LENGTHS))
    expected = by_torch(conv, x)
    torch.testing.assert_close(found, expected)
    of = (x, *conv.parameters())
    weights = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), of),
        torch.autograd.grad((expected * weights).sum(), of),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_half_precision_is_added_up_in_float32():
    conv, x = conv_of(4, bias=True, dtype=torch.bfloat16), inputs(torch.bfloat16)
    found, _ = conv(x, PackedSequences.from_lengths(LENGTHS))
    expected = by_torch(conv.double(), x.double())
    torch.testing.assert_close(found, expected.bfloat16(), rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 4])
@torch.no_grad()
def test_pieces_and_single_tokens_have_the_same_bits(size):
    conv, x = conv_of(size, bias=True, dtype=torch.float32), inputs(torch.float32)
    whole, last = conv(x, PackedSequences.from_lengths(LENGTHS))
    longest, outputs, state = x[-9:], [], None
    for start, end in [(0, 1), (1, 2), (2, 4), (4, 8), (8, 9)]:
        # beside a sequence of one token that begins
        begun = None if state is None else torch.cat((torch.zeros_like(state), state))
        pack = torch.cat((x[5:6], longest[start:end]))
        y, after = conv(pack, PackedSequences.from_lengths([1, end - start]), begun)
        outputs.append(y[1:])
        state = after[1:]
        assert torch.equal(y[:1], whole[5:6])
        assert torch.equal(after[0], last[1])
    assert torch.equal(torch.cat(outputs), whole[-9:])
    assert torch.equal(state[0], last[-1])
