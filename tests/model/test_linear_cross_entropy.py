"""The fused head and cross-entropy equal the plain computation, in fp64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from reallm.model import linear_cross_entropy as losses
from reallm.model.linear_cross_entropy import (
    OutputHead,
    head_cross_entropy,
    head_logprobs,
    head_logprobs_and_entropies,
)


def plain(hidden, weight, targets, multiplier, softcap, bias=0.0, temperature=1.0):
    logits = (hidden @ weight.t() + bias) * multiplier
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits / temperature, targets, reduction="none")


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("multiplier", [1.0, 0.25])
@pytest.mark.parametrize("n_tokens", [1, 7, 16])
@pytest.mark.parametrize("has_bias", [False, True])
def test_value_and_gradients_equal_the_plain_computation(
    monkeypatch, has_bias, n_tokens, multiplier, softcap, temperature
):
    monkeypatch.setitem(losses.LOGIT_CHUNK_BYTES, "cpu", 4 * 11 * 5)  # five tokens a chunk
    torch.manual_seed(0)
    hidden = torch.randn(n_tokens, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True) if has_bias else None
    targets = torch.randint(0, 11, (n_tokens,))
    inputs = [hidden, weight, *([bias] if has_bias else [])]

    expected = plain(hidden, weight, targets, multiplier, softcap, bias if has_bias else 0.0, temperature)
    wanted = torch.autograd.grad(expected.sum() * 0.37, inputs)
    result = head_cross_entropy(hidden, targets, OutputHead(weight, bias, multiplier, softcap), temperature)
    got = torch.autograd.grad(result.loss_sum * 0.37, inputs)

    torch.testing.assert_close(result.loss_sum, expected.sum(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result.nll, expected.detach(), rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("has_bias", [False, True])
def test_logprobs_and_their_gradients_equal_the_plain_computation(monkeypatch, has_bias, softcap, temperature):
    monkeypatch.setitem(losses.LOGIT_CHUNK_BYTES, "cpu", 4 * 11 * 5)
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for n in (16, 11))
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True) if has_bias else None
    targets, weights = torch.randint(0, 11, (16,)), torch.randn(16, dtype=torch.float64)
    inputs = [hidden, weight, *([] if bias is None else [bias])]

    expected = -plain(hidden, weight, targets, 0.25, softcap, bias if has_bias else 0.0, temperature)
    got = head_logprobs(hidden, targets, OutputHead(weight, bias, 0.25, softcap), temperature)

    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(
        torch.autograd.grad((got * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("uses", ["both", "entropies", "logprobs"])
def test_entropies_and_their_gradients_equal_the_plain_computation(monkeypatch, softcap, uses):
    monkeypatch.setitem(losses.LOGIT_CHUNK_BYTES, "cpu", 4 * 11 * 5)
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 6, dtype=torch.float64, requires_grad=True) for n in (16, 11))
    targets, weights = torch.randint(0, 11, (16,)), torch.randn(2, 16, dtype=torch.float64)
    logits = 0.25 * hidden @ weight.T
    logits = (logits if softcap is None else softcap * torch.tanh(logits / softcap)) / 0.7
    probabilities = logits.softmax(-1)
    expected = (logits.log_softmax(-1)[torch.arange(16), targets], -(probabilities * logits.log_softmax(-1)).sum(-1))
    got = head_logprobs_and_entropies(hidden, targets, OutputHead(weight, None, 0.25, softcap), 0.7)
    weights[0 if uses == "entropies" else 1] *= uses == "both"
    sums = []
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)
    for pair in (got, expected):
        terms = [(one * of).sum() for one, of in zip(pair, weights, strict=True) if of.abs().sum()]
        sums.append(torch.autograd.grad(sum(terms), (hidden, weight)))
    for mine, theirs in zip(*sums, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)
    assert torch.equal(head_logprobs(hidden, targets, OutputHead(weight, None, 0.25, softcap), 0.7), got[0])


def test_bf16_gradients_are_summed_in_float32(monkeypatch):
    monkeypatch.setitem(losses.LOGIT_CHUNK_BYTES, "cpu", 4 * 11 * 3)
    torch.manual_seed(0)
    hidden = torch.randn(64, 8, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(11, 8, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(0, 11, (64,))
    head_cross_entropy(hidden, targets, OutputHead(weight)).loss_sum.backward()
    exact_hidden, exact_weight = (x.detach().double().requires_grad_() for x in (hidden, weight))
    plain(exact_hidden, exact_weight, targets, 1.0, None).sum().backward()
    # bf16 keeps 8 bits, 2^-8 = 0.4 %, of each of the two factors of a product
    assert torch.linalg.norm(weight.grad.double() - exact_weight.grad) < 0.02 * torch.linalg.norm(exact_weight.grad)
    assert torch.linalg.norm(hidden.grad.double() - exact_hidden.grad) < 0.02 * torch.linalg.norm(exact_hidden.grad)


def test_no_gradient_is_computed_for_what_needs_none():
    hidden, weight = torch.randn(4, 3), torch.randn(5, 3, requires_grad=True)
    head_cross_entropy(hidden, torch.tensor([0, 1, 2, 3]), OutputHead(weight)).loss_sum.backward()
    assert hidden.grad is None
    assert weight.grad is not None
    bias, frozen = torch.zeros(5, requires_grad=True), torch.randn(5, 3)
    head_cross_entropy(hidden, torch.tensor([0, 1, 2, 3]), OutputHead(frozen, bias)).loss_sum.backward()
    assert bias.grad is not None
    assert frozen.grad is None


def test_correct_says_where_the_target_is_most_likely():
    weight = torch.eye(4)
    result = head_cross_entropy(torch.eye(4)[[0, 1, 2]] * 5, torch.tensor([0, 3, 2]), OutputHead(weight))
    assert result.correct.tolist() == [True, False, True]


def test_a_target_as_likely_as_another_counts_as_correct():
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    result = head_cross_entropy(torch.tensor([[2.0, 0.0]] * 3), torch.tensor([0, 1, 2]), OutputHead(weight))
    assert result.correct.tolist() == [True, True, False]


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_logits_of_any_size_give_exact_likelihoods(scale):
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(9, 4) * scale, torch.randn(50, 4, requires_grad=True), torch.arange(9)
    result = head_cross_entropy(hidden, targets, OutputHead(weight))
    exact = plain(hidden.double(), weight.double(), targets, 1.0, None)
    torch.testing.assert_close(result.nll.double(), exact, rtol=2e-6, atol=1e-6)
    result.loss_sum.backward()
    assert weight.grad.isfinite().all()


def test_deterministic_algorithms_give_the_same_numbers(monkeypatch):
    monkeypatch.setitem(losses.LOGIT_CHUNK_BYTES, "cpu", 4 * 11 * 3)
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 4, requires_grad=True), torch.randn(11, 4, requires_grad=True)

    def numbers():
        result = head_cross_entropy(hidden, torch.arange(7), OutputHead(weight))
        return result.nll, *torch.autograd.grad(result.loss_sum, (hidden, weight))

    expected = numbers()
    torch.use_deterministic_algorithms(True)  # memory that is not written first is NaN in this mode
    try:
        assert all(torch.equal(got, want) for got, want in zip(numbers(), expected, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


def test_no_position_carries_loss():
    hidden, weight = torch.randn(0, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    result = head_cross_entropy(hidden, torch.empty(0, dtype=torch.int64), OutputHead(weight))
    result.loss_sum.backward()
    assert result.loss_sum == 0
    assert result.nll.numel() == 0
    assert torch.equal(weight.grad, torch.zeros(5, 4))


@pytest.mark.parametrize(("n_tokens", "size"), [(1, 1), (5, 5), (6, 3), (7, 4), (11, 4), (0, 1)])
def test_chunks_are_about_equal(monkeypatch, n_tokens, size):
    monkeypatch.setitem(losses.LOGIT_CHUNK_BYTES, "cpu", 4 * 11 * 5)  # five tokens at most
    assert losses.chunk_size(n_tokens, 11, torch.device("cpu")) == size


def test_a_sequence_is_never_trained_to_predict_the_first_token_of_the_next():
    tokens = torch.tensor([10, 11, 12, 13, 20, 21, 22])
    mask = torch.tensor([False, False, True, True, True, True, True])  # the mask covers b's first token, 20
    positions, targets = losses.next_token_targets(tokens, torch.tensor([0, 4, 7]), mask)
    assert positions.tolist() == [1, 2, 4, 5]
    assert targets.tolist() == [12, 13, 21, 22]


def test_targets_of_an_untrained_batch_are_empty():
    positions, targets = losses.next_token_targets(
        torch.tensor([1, 2, 3]), torch.tensor([0, 3, 3]), torch.zeros(3, dtype=torch.bool)
    )
    assert positions.numel() == targets.numel() == 0
