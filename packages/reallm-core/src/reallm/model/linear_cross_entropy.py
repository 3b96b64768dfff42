"""The output head fused with cross-entropy: logits exist one chunk of tokens at a time, never as `[T, V]`.

Shapes: T packed tokens, N tokens that carry loss, E hidden, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reallm.model import softmax
from reallm.model.products.linear import input_grads, linear, linear_into
from reallm.model.products.prepacked import PrepackedWeight

LOGIT_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
"""Size of one chunk of float32 logits: on CPU near the last-level cache, on a GPU enough rows to fill it."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy of N targets: the differentiable sum, and detached values of each target."""

    loss_sum: Tensor
    """0-dim, float32 or wider: sum of `nll`, differentiable."""
    nll: Tensor
    """[N] detached: negative log-likelihood of each target, in nats."""
    correct: Tensor
    """[N] bool: whether the target is the most likely token."""


def next_token_targets(tokens: Tensor, cu_seqlens: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [N] that predict a token with loss, and those target tokens [N].

    Position `t` counts if `t + 1` belongs to the same sequence and `loss_mask[t + 1]` is set: with
    `tokens = [p p a e | p a e]` and the mask on `a` and `e`, positions 1, 2, 4 and 5 predict `a e a e`.

    Args:
        tokens: [T] integers.
        cu_seqlens: [S+1] bounds of the sequences.
        loss_mask: [T] bool, True on tokens that carry loss.
    """
    targets_at = predicted(loss_mask, cu_seqlens).nonzero()[:, 0]
    return targets_at - 1, tokens[targets_at]


def predicted(mask: Tensor, cu_seqlens: Tensor) -> Tensor:
    """A mask [T] bool without the first token of each sequence, which nothing predicts; `cu_seqlens` [S+1] bounds
    them."""
    starts = cu_seqlens[:-1].to(mask.device, torch.int64)
    return mask.index_fill(0, starts[starts < mask.numel()], False)


class Vocabulary(Protocol):
    """The rows of the output head that this rank holds, and the reductions over ranks."""

    start: int
    """Token of the first row."""

    def read(self, hidden: Tensor) -> Tensor:
        """Hidden states [N, E] as input of the product with these rows."""

    def whole(self, logits: Tensor) -> Tensor:
        """Logits [N, V] of the whole vocabulary, from the logits [N, v] of these rows."""

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """Sum over all parts of the vocabulary, in place."""

    def all_reduce_max(self, x: Tensor) -> Tensor:
        """Maximum over all parts of the vocabulary, in place."""


class VocabReplicated:
    """The whole vocabulary on every rank."""

    start = 0

    def read(self, hidden: Tensor) -> Tensor:
        """See `Vocabulary`."""
        return hidden

    def whole(self, logits: Tensor) -> Tensor:
        """See `Vocabulary`."""
        return logits

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """See `Vocabulary`."""
        return x

    def all_reduce_max(self, x: Tensor) -> Tensor:
        """See `Vocabulary`."""
        return x


@dataclass(frozen=True)
class OutputHead:
    """Output projection: `softcap(multiplier * (hidden @ weight.T + bias))`."""

    weight: Tensor
    """The local rows [v, E]."""
    bias: Tensor | None = None
    """[v]."""
    multiplier: float = 1.0
    softcap: float | None = None
    vocabulary: Vocabulary = field(default_factory=VocabReplicated)
    """Position of the local rows in the whole vocabulary, and reductions over ranks."""
    prepacked: PrepackedWeight | None = None
    """Holder of the weight's prepacked form, for `logits`."""
    exact: bool = False
    """Whether logits of a token do not depend on the other tokens, bit for bit."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] of hidden states [N, E], of the whole vocabulary."""
        return self.vocabulary.whole(self.local_logits(self.vocabulary.read(hidden)))

    def local_logits(self, hidden: Tensor) -> Tensor:
        """Logits [N, v] of hidden states [N, E], of the local rows."""
        out = linear(hidden, self.weight, self.bias, self.prepacked, exact=self.exact)
        if self.multiplier != 1.0:
            out = out * self.multiplier
        return out if self.softcap is None else self.softcap * torch.tanh(out / self.softcap)


def head_cross_entropy(hidden: Tensor, targets: Tensor, head: OutputHead, temperature: float = 1.0) -> CrossEntropy:
    """Cross-entropy of the logits of `hidden` [N, E] against `targets` [N] int64, chunk by chunk.

    The logits have the dtype of `hidden`, as those that are sampled from; their softmax is in float32 or float64.
    Gradients are computed in the forward pass while a chunk of logits exists, so that the backward pass only scales
    them; logits are neither saved nor computed twice.
    """
    inverse = softmax.inverse_of(temperature)
    loss_sum, nll, correct = _HeadCrossEntropy.apply(hidden, head.weight, head.bias, targets, head, inverse)
    return CrossEntropy(loss_sum, nll, correct)


def head_logprobs(hidden: Tensor, targets: Tensor, head: OutputHead, temperature: float = 1.0) -> Tensor:
    """Log-probabilities [N], at least float32, of `targets` [N] int64 under the logits of `hidden` [N, E].

    Precision as in `head_cross_entropy`. Differentiable once. Gradients with respect to each log-probability are known
    only in the backward pass, which therefore recomputes the logits, chunk by chunk.
    """
    inverse = softmax.inverse_of(temperature)
    logprobs: Tensor = _HeadLogprobs.apply(hidden, head.weight, head.bias, targets, head, inverse, False)[0]
    return logprobs


def head_logprobs_and_entropies(
    hidden: Tensor, targets: Tensor, head: OutputHead, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [N] as `head_logprobs` gives them, and the entropies [N] of the whole distributions, in nats.

    Both are differentiable once.
    """
    inverse = softmax.inverse_of(temperature)
    logprobs, entropies = _HeadLogprobs.apply(hidden, head.weight, head.bias, targets, head, inverse, True)
    return logprobs, entropies


def chunk_size(n_tokens: int, n_vocab: int, device: torch.device) -> int:
    """Number of tokens in a chunk: as many as `LOGIT_CHUNK_BYTES` allows, all chunks about equal."""
    most = max(1, LOGIT_CHUNK_BYTES.get(device.type, 64 << 20) // (4 * n_vocab))
    n_chunks = max(1, -(-n_tokens // most))
    return max(1, -(-n_tokens // n_chunks))


class Chunk(NamedTuple):
    """Some of the N tokens, and their local logits."""

    rows: slice
    hidden: Tensor
    logits: Tensor
    """[n, v] at least float32, to be overwritten."""
    targets: Tensor
    """[n, 1]: column of the target in `logits`; any column where `is_local` is False."""
    is_local: Tensor
    """[n, 1] bool: whether the target is among the local rows of the head."""

    def softmax_(
        self, vocabulary: Vocabulary, inverse_temperature: float
    ) -> tuple[softmax.Softmax, Tensor, Tensor, Tensor]:
        """Softmax of the local logits, which it may overwrite.

        Returns:
            The local softmax, and of the whole vocabulary [n, 1] float64: the highest logits, the logits of the
            targets, and the normalizers.
        """
        target_logits = self.logits.gather(1, self.targets).masked_fill_(~self.is_local, 0.0)
        best = softmax.highest(self.logits)
        local = softmax.softmax(self.logits, best, inverse_temperature, overwrite=True)
        maxima = vocabulary.all_reduce_max(torch.cat((best.logits.double(), local.normalizer), dim=1))
        shares = (local.normalizer - maxima[:, 1:]).exp()
        sums = vocabulary.all_reduce_sum(torch.cat((target_logits.double(), shares), dim=1))
        return local, maxima[:, :1], sums[:, :1], maxima[:, 1:] + sums[:, 1:].log()

    def add_at_target(self, x: Tensor, values: Tensor | float) -> None:
        """Add `values` [n] to `x` [n, v] at the targets, where they are local."""
        rows = torch.arange(len(x), device=x.device)
        x[rows, self.targets[:, 0]] += values * self.is_local[:, 0].to(x.dtype)


def chunks(hidden: Tensor, targets: Tensor, head: OutputHead) -> Iterator[Chunk]:
    """The local logits of `hidden` [N, E], chunk by chunk; the logits of a chunk are overwritten by the next ones."""
    n_tokens, n_vocab = hidden.shape[0], head.weight.shape[0]
    exact = torch.promote_types(hidden.dtype, torch.float32)  # half precision is summed in float32
    chunk = chunk_size(n_tokens, n_vocab, hidden.device)
    buffer = torch.empty(chunk, n_vocab, dtype=exact, device=hidden.device)  # allocating one for each chunk costs time
    starts = range(0, n_tokens, chunk)
    for start in (*starts[:2], *starts[2:][-1:]) if hidden.is_meta else starts:  # others take no other memory
        rows = slice(start, start + chunk)
        inputs, columns = hidden[rows], targets[rows, None] - head.vocabulary.start
        logits = buffer[: len(inputs)]
        if inputs.dtype == exact:
            _local_logits_into(inputs, head, logits)
        else:
            logits.copy_(head.local_logits(inputs))
        is_local = (columns >= 0) & (columns < n_vocab)
        yield Chunk(rows, inputs, logits, columns.masked_fill(~is_local, 0), is_local)


def _local_logits_into(hidden: Tensor, head: OutputHead, out: Tensor) -> None:
    """`head.local_logits` without allocating memory."""
    linear_into(hidden, head.weight, out, exact=head.exact)
    if head.bias is not None:
        out.add_(head.bias)
    if head.multiplier != 1.0:
        out.mul_(head.multiplier)
    if head.softcap is not None:
        out.div_(head.softcap).tanh_().mul_(head.softcap)


class HeadGradients:
    """Gradients of hidden states, weight and bias of the head, accumulated chunk by chunk."""

    def __init__(self, hidden: Tensor, head: OutputHead, inverse_temperature: float, needed: Sequence[bool]) -> None:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        weight, bias = head.weight, head.bias
        self._head, self._scale = head, head.multiplier * inverse_temperature
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight = torch.zeros(weight.shape, dtype=exact, device=weight.device) if needed[1] else None
        self.bias = torch.zeros(weight.shape[0], dtype=exact, device=weight.device) if needed[2] else None
        self._bias_dtype = None if bias is None else bias.dtype

    def slope(self, logits: Tensor) -> Tensor | None:
        """Derivative of the soft cap, taken before the logits are overwritten; None without one."""
        return None if self._head.softcap is None else 1 - (logits / self._head.softcap) ** 2

    def add(self, chunk: Chunk, grad_logits: Tensor, slope: Tensor | None) -> None:
        """Accumulate from the gradients [n, v] of a chunk's logits over the temperature, which are overwritten."""
        if slope is not None:
            grad_logits.mul_(slope)
        if self._scale != 1.0:
            grad_logits.mul_(self._scale)
        if self.bias is not None:
            self.bias.add_(grad_logits.sum(dim=0))
        low = grad_logits.to(chunk.hidden.dtype)
        if self.hidden is not None:
            self.hidden[chunk.rows] = input_grads(low, self._head.weight)
        if self.weight is not None:
            if self.weight.dtype == low.dtype:
                self.weight.addmm_(low.t(), chunk.hidden)
            else:
                self.weight.add_(low.t() @ chunk.hidden)

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden states, weight and bias, in their dtypes."""
        return (
            None if self.hidden is None else self._head.vocabulary.all_reduce_sum(self.hidden),
            None if self.weight is None else self.weight.to(self._head.weight.dtype),
            None if self.bias is None or self._bias_dtype is None else self.bias.to(self._bias_dtype),
        )


class _HeadCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: OutputHead,
        inverse_temperature: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        n_tokens, exact = hidden.shape[0], torch.promote_types(hidden.dtype, torch.float32)
        needed = ctx.needs_input_grad[:3]
        gradients = HeadGradients(hidden, head, inverse_temperature, needed)
        nll = torch.empty(n_tokens, dtype=exact, device=hidden.device)
        correct = torch.empty(n_tokens, dtype=torch.bool, device=hidden.device)
        for chunk in chunks(hidden, targets, head):
            slope = gradients.slope(chunk.logits) if any(needed) else None
            local, highest, target_logits, normalizer = chunk.softmax_(head.vocabulary, inverse_temperature)
            nll[chunk.rows] = -softmax.logprob(target_logits, normalizer, inverse_temperature)[:, 0]
            correct[chunk.rows] = (target_logits >= highest)[:, 0]
            if any(needed):
                # d nll / d logits = softmax - one_hot(target)
                grad_logits = local.weights.mul_(local.factor(normalizer))
                chunk.add_at_target(grad_logits, -1.0)
                gradients.add(chunk, grad_logits, slope)
        ctx.gradients = gradients.result()
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


class _HeadLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        head: OutputHead,
        inverse_temperature: float,
        with_entropies: bool,
    ) -> tuple[Tensor, Tensor | None]:
        exact = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(hidden.shape[0], dtype=exact, device=hidden.device)
        normalizers = torch.empty_like(logprobs, dtype=torch.float64)
        entropies = torch.empty_like(logprobs) if with_entropies else None
        for chunk in chunks(hidden, targets, head):
            local, _, target_logits, normalizer = chunk.softmax_(head.vocabulary, inverse_temperature)
            logprobs[chunk.rows] = softmax.logprob(target_logits, normalizer, inverse_temperature)[:, 0]
            normalizers[chunk.rows] = normalizer[:, 0]
            if entropies is not None:
                share = softmax.entropy(local.weights.mul_(local.factor(normalizer)))
                entropies[chunk.rows] = head.vocabulary.all_reduce_sum(share).to(exact)
        ctx.save_for_backward(hidden, weight, bias, targets, normalizers, entropies)
        ctx.head, ctx.inverse_temperature = head, inverse_temperature
        ctx.set_materialize_grads(False)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor | None, grad_entropies: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, bias, targets, normalizers, entropies = ctx.saved_tensors
        head = dataclasses.replace(ctx.head, weight=weight, bias=bias)
        gradients = HeadGradients(hidden, head, ctx.inverse_temperature, ctx.needs_input_grad[:3])
        if grad is None:
            grad = torch.zeros_like(entropies)
        for chunk in chunks(hidden, targets, head):
            slope = gradients.slope(chunk.logits)
            best = softmax.highest(chunk.logits)
            local = softmax.softmax(chunk.logits, best, ctx.inverse_temperature, overwrite=True)
            grad_logprobs, factor = grad[chunk.rows], local.factor(normalizers[chunk.rows, None])
            if grad_entropies is None:
                # d logprob / d logits = one_hot(target) - softmax
                grad_logits = local.weights.mul_(factor * -grad_logprobs[:, None])
            else:
                # d entropy / d logits = -softmax * (log softmax + entropy)
                of_entropy = grad_entropies[chunk.rows, None]
                probabilities = local.weights.mul_(factor)
                surprise = torch.special.entr(probabilities).mul_(of_entropy)
                grad_logits = probabilities.mul_(-grad_logprobs[:, None] - of_entropy * entropies[chunk.rows, None])
                grad_logits.add_(surprise)
            chunk.add_at_target(grad_logits, grad_logprobs)
            gradients.add(chunk, grad_logits, slope)
        return *gradients.result(), None, None, None, None
