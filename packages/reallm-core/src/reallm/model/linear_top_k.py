"""The output head fused with the distribution over a few tokens and all others together: what distillation compares.

Logits exist one chunk of tokens at a time, never as `[T, V]`.

Shapes: N tokens, K tokens of the vocabulary for each, E hidden, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reallm.model import softmax
from reallm.model.linear_cross_entropy import HeadGradients, OutputHead, chunk_size, chunks

LOWEST_REST = 1e-30
"""Lowest probability of all other tokens together, whose logarithm is finite in float32."""


class TopK(NamedTuple):
    """The most likely tokens of each distribution, and what they leave."""

    tokens: Tensor
    """[N, K] int64, the most likely one first."""
    logprobs: Tensor
    """[N, K], at least float32."""
    rest: Tensor
    """[N], the probability of all other tokens together: at least `LOWEST_REST`, or 0 if there are none."""


@torch.no_grad()
def head_top_k(hidden: Tensor, k: int, head: OutputHead, n_tokens: int, temperature: float = 1.0) -> TopK:
    """The `k` most likely of the first `n_tokens` tokens, under the logits of `hidden` [N, E] over a temperature.

    Rows of the vocabulary from `n_tokens` on, which pad it, are only in the rest.
    """
    inverse, exact = softmax.inverse_of(temperature), torch.promote_types(hidden.dtype, torch.float32)
    found = []
    for rows in hidden.split(chunk_size(len(hidden), n_tokens, hidden.device)):
        logprobs = torch.log_softmax(head.logits(rows).to(exact) * inverse, dim=-1)
        best, tokens = logprobs[:, :n_tokens].topk(k, dim=-1)
        rest = logprobs.exp_().scatter_(1, tokens, 0.0).sum(dim=-1, dtype=torch.float64).to(exact)
        found.append(TopK(tokens, best, rest.clamp_(min=LOWEST_REST) if k < logprobs.shape[1] else rest))
    return TopK(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def head_logprobs_and_rest(hidden: Tensor, tokens: Tensor, head: OutputHead, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [N, K+1] of `tokens` [N, K], distinct in each row, and of all other tokens together.

    That of all others is at least `log(LOWEST_REST)`. Precision as in `head_cross_entropy`. Differentiable once; the
    backward pass recomputes the logits, chunk by chunk.
    """
    inverse = softmax.inverse_of(temperature)
    logprobs: Tensor = _HeadLogprobsAndRest.apply(hidden, head.weight, head.bias, tokens, head, inverse)
    return logprobs


class _HeadLogprobsAndRest(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        head: OutputHead,
        inverse_temperature: float,
    ) -> Tensor:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(hidden), tokens.shape[1] + 1, dtype=exact, device=hidden.device)
        normalizers = torch.empty(len(hidden), 1, dtype=torch.float64, device=hidden.device)
        for chunk in chunks(hidden, tokens[:, 0], head):
            at = _local_places(tokens[chunk.rows], head)
            logits = torch.zeros(at.is_local.shape, dtype=torch.float64, device=hidden.device)
            logits[at.is_local] = chunk.logits[at.rows, at.columns].double()
            local, _, _, normalizer = chunk.softmax_(head.vocabulary, inverse_temperature)
            others = local.weights.mul_(local.factor(normalizer))
            others[at.rows, at.columns] = 0.0
            logits, rest = head.vocabulary.all_reduce_sum(
                torch.cat((logits, others.sum(dim=1, keepdim=True, dtype=torch.float64)), dim=1)
            ).tensor_split([tokens.shape[1]], dim=1)
            logprobs[chunk.rows, :-1] = softmax.logprob(logits, normalizer, inverse_temperature).to(exact)
            logprobs[chunk.rows, -1:] = rest.clamp(min=LOWEST_REST).log().to(exact)
            normalizers[chunk.rows] = normalizer
        ctx.save_for_backward(hidden, weight, bias, tokens, normalizers, logprobs)
        ctx.head, ctx.inverse_temperature = head, inverse_temperature
        return logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        hidden, weight, bias, tokens, normalizers, logprobs = ctx.saved_tensors
        head = dataclasses.replace(ctx.head, weight=weight, bias=bias)
        gradients = HeadGradients(hidden, head, ctx.inverse_temperature, ctx.needs_input_grad[:3])
        totals = grad.sum(dim=1, keepdim=True)
        of_others = grad[:, -1:] * (-logprobs[:, -1:]).exp() - totals
        of_tokens = grad[:, :-1] - logprobs[:, :-1].exp() * totals
        for chunk in chunks(hidden, tokens[:, 0], head):
            slope = gradients.slope(chunk.logits)
            best = softmax.highest(chunk.logits)
            local = softmax.softmax(chunk.logits, best, ctx.inverse_temperature, overwrite=True)
            at = _local_places(tokens[chunk.rows], head)
            # With the gradients g of the K tokens and h of the rest, and G their sum,
            # d / d logit is g - G softmax for a token, and (h / rest - G) softmax for any other.
            grad_logits = local.weights.mul_(local.factor(normalizers[chunk.rows]) * of_others[chunk.rows])
            grad_logits[at.rows, at.columns] = of_tokens[chunk.rows][at.is_local]
            gradients.add(chunk, grad_logits, slope)
        return *gradients.result(), None, None, None


class _Places(NamedTuple):
    is_local: Tensor
    """[n, K] bool: whether a token is among the local rows of the head."""
    rows: Tensor
    columns: Tensor
    """Where those that are stand in the local logits [n, v]."""


def _local_places(tokens: Tensor, head: OutputHead) -> _Places:
    columns = tokens - head.vocabulary.start
    is_local = (columns >= 0) & (columns < len(head.weight))
    return _Places(is_local, is_local.nonzero()[:, 0], columns[is_local])
