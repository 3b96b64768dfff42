"""The head's distribution over a few tokens and the rest against plain logits, in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from reallm.model import linear_cross_entropy
from reallm.model.linear_cross_entropy import OutputHead
from reallm.model.linear_top_k import LOWEST_REST, head_logprobs_and_rest, head_top_k

N, E, V = 7, 6, 23
PLAIN = OutputHead(torch.empty(0))
SCALED = OutputHead(torch.empty(0), multiplier=1.5, softcap=2.0)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of three tokens, so that there are several."""
    monkeypatch.setitem(linear_cross_entropy.LOGIT_CHUNK_BYTES, "cpu", 4 * V * 3)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((N, E), (V, E), (V,))
    return tuple(torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes)  # type: ignore[return-value]


def plain_logits(hidden: Tensor, head: OutputHead) -> Tensor:
    logits = head.multiplier * (hidden @ head.weight.T + (0 if head.bias is None else head.bias))
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


@pytest.mark.parametrize("head", [PLAIN, SCALED])
@pytest.mark.parametrize("k", [1, 4, V])
def test_values_and_gradients_are_those_of_plain_logits(head: OutputHead, k: int) -> None:
    hidden, weight, bias = inputs()
    head = dataclasses.replace(head, weight=weight, bias=None if head is SCALED else bias)
    expected = torch.log_softmax(plain_logits(hidden, head) / 0.7, dim=-1)
    top = head_top_k(hidden, k, head, V, 0.7)
    torch.testing.assert_close(top.logprobs, expected.gather(1, top.tokens))
    torch.testing.assert_close(top.rest, 1 - top.logprobs.exp().sum(dim=1), rtol=1e-9, atol=1e-12)
    assert torch.equal(top.tokens, expected.topk(k).indices)

    tokens = top.tokens.roll(1, dims=0)  # of another row: not the most likely ones
    found = head_logprobs_and_rest(hidden, tokens, head, 0.7)
    others = torch.ones_like(expected).scatter(1, tokens, 0.0)
    rest = (expected.exp() * others).sum(dim=1, keepdim=True).clamp(min=LOWEST_REST).log()
    plain = torch.cat((expected.gather(1, tokens), rest), dim=1)
    torch.testing.assert_close(found, plain)
    coefficients = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    coefficients[:, -1] *= k < V  # nothing depends on a rest that is empty
    needed = [x for x in (hidden, weight, head.bias) if x is not None]
    for one, other in zip(
        torch.autograd.grad((found * coefficients).sum(), needed),
        torch.autograd.grad((plain * coefficients).sum(), needed),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_rows_that_pad_the_vocabulary_are_only_in_the_rest() -> None:
    hidden, weight, _ = inputs()
    head = OutputHead(weight)
    top = head_top_k(hidden, V - 3, head, V - 3)
    assert top.tokens.max() < V - 3
    padding = torch.softmax(plain_logits(hidden, head), dim=-1)[:, V - 3 :].sum(dim=1)
    torch.testing.assert_close(top.rest, padding.detach())
