"""The output head fused with cross-entropy: logits exist one chunk of tokens at a time, never as `[T, V]`.

Shapes: T packed tokens, N tokens that carry loss, E hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LOGIT_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Size of one chunk of float32 logits: on CPU near the last-level cache, on a GPU enough rows to fill it."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of N targets: the sum that is differentiated, and what is known of each."""

    loss_sum: Tensor
    """0-dim, float32 or wider: sum of `nll`, differentiable."""
    nll: Tensor
    """[N] detached: negative log-likelihood of each target, in nats."""
    correct: Tensor
    """[N] bool: whether the target is the most likely token."""


def next_token_targets(tokens: Tensor, cu_seqlens: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [N] that predict a trained token, and those tokens [N].

    Position `t` counts if `t + 1` belongs to the same sequence and `loss_mask[t + 1]` is set: with
    `tokens = [p p a e | p a e]` and the mask on `a` and `e`, positions 1, 2, 4 and 5 predict `a e a e`.

    Args:
        tokens: [T] integers.
        cu_seqlens: [S+1] bounds of the sequences.
        loss_mask: [T] bool, True on tokens that are trained.
    """
    trained = loss_mask.clone()
    starts = cu_seqlens[:-1].to(tokens.device, torch.int64)
    trained[starts[starts < trained.numel()]] = False  # nothing predicts the first token of a sequence
    targets_at = trained.nonzero()[:, 0]
    return targets_at - 1, tokens[targets_at]


def head_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    multiplier: float = 1.0,
    softcap: float | None = None,
) -> CrossEntropy:
    """Cross-entropy of `softcap(multiplier * (hidden @ weight.T + bias))` against `targets`, chunk by chunk.

    Gradients are computed in the forward pass while a chunk of logits is there, so that the backward pass only scales
    them; the logits are never kept or computed twice.

    Args:
        hidden: [N, E].
        weight: [V, E] of the output head.
        targets: [N] int64.
        bias: [V] of the output head.
    """
    loss_sum, nll, correct = _HeadCrossEntropy.apply(hidden, weight, bias, targets, multiplier, softcap)
    return CrossEntropy(loss_sum, nll, correct)


def _chunk_size(n_tokens: int, n_vocab: int, device: torch.device) -> int:
    """Tokens that go through the head at once: as many as `LOGIT_CHUNK_BYTES` allows, all chunks about equal."""
    most = max(1, LOGIT_CHUNK_BYTES.get(device.type, 64 << 20) // (4 * n_vocab))
    n_chunks = max(1, -(-n_tokens // most))
    return max(1, -(-n_tokens // n_chunks))


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        multiplier: float,
        softcap: float | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_tokens, n_vocab = hidden.shape[0], weight.shape[0]
        exact = torch.promote_types(hidden.dtype, torch.float32)  # half precision is summed in float32
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if need_weight else None
        grad_bias = torch.zeros(weight.shape[0], dtype=exact, device=weight.device) if need_bias else None
        need_any = need_hidden or need_weight or need_bias
        nll = torch.empty(n_tokens, dtype=exact, device=hidden.device)
        correct = torch.empty(n_tokens, dtype=torch.bool, device=hidden.device)

        chunk = _chunk_size(n_tokens, n_vocab, hidden.device)
        space = torch.empty(chunk, n_vocab, dtype=exact, device=hidden.device)  # fresh memory for each chunk costs time
        for start in range(0, n_tokens, chunk):
            rows = slice(start, start + chunk)
            part, wanted = hidden[rows], targets[rows, None]
            logits = space[: len(part)]
            if part.dtype == exact:
                torch.mm(part, weight.t(), out=logits)
            else:
                logits.copy_(part @ weight.t())
            if bias is not None:
                logits.add_(bias)
            if multiplier != 1.0:
                logits.mul_(multiplier)
            if softcap is not None:
                logits.div_(softcap).tanh_().mul_(softcap)
            slope = 1 - (logits / softcap) ** 2 if softcap is not None and need_any else None
            highest, of_target = logits.amax(dim=-1, keepdim=True), logits.gather(1, wanted)
            exponentials = logits.sub_(highest).exp_()
            total = exponentials.sum(dim=-1, keepdim=True)
            nll[rows] = (highest - of_target + total.log())[:, 0]
            correct[rows] = (of_target >= highest)[:, 0]
            if not need_any:
                continue
            # d nll / d logits = softmax - one_hot(target)
            grad_logits = exponentials.div_(total)
            grad_logits[torch.arange(len(part), device=hidden.device), wanted[:, 0]] -= 1.0
            if slope is not None:
                grad_logits.mul_(slope)
            if multiplier != 1.0:
                grad_logits.mul_(multiplier)
            if grad_bias is not None:
                grad_bias.add_(grad_logits.sum(dim=0))
            low = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(low, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                if grad_weight.dtype == low.dtype:
                    grad_weight.addmm_(low.t(), part)
                else:
                    grad_weight.add_(low.t() @ part)

        ctx.gradients = (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if bias is None or grad_bias is None else grad_bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(nll, correct)
        return nll.sum(), nll, correct

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_loss: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        gradients = ctx.gradients
        del ctx.gradients  # scaled in place below, so they serve one backward pass only
        for gradient in gradients:
            if gradient is not None:
                gradient.mul_(grad_loss)
        return *gradients, None, None, None
