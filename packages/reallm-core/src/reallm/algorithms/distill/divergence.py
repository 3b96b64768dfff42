"""Divergences of two distributions over a few tokens and all others together.

Merging tokens can only lower a divergence: with few tokens it is a bound from below, and with all of them exact.

Shapes: N tokens of answers, K tokens of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def with_rest(logprobs: Tensor, rest: Tensor) -> Tensor:
    """Log-probabilities [N, K+1]: those [N, K] of tokens and, last, of the probability [N] of all others."""
    return torch.cat((logprobs, rest[:, None].log()), dim=1)


def divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """The generalised Jensen-Shannon divergence [N] of log-probabilities [N, K+1], in nats (GKD, arXiv 2306.13649).

    With the mixture m = beta teacher + (1 - beta) student, it is beta KL(teacher || m) + (1 - beta) KL(student || m);
    for `beta=0` it is KL(teacher || student), and for `beta=1` KL(student || teacher).

    Args:
        student: differentiable.
        teacher: where it is minus infinity, there are no other tokens, and the student's is ignored.
        beta: from 0 to 1.
    """
    known = teacher > -torch.inf
    student, teacher = student.masked_fill(~known, 0.0), teacher.masked_fill(~known, 0.0)
    if beta in (0.0, 1.0):
        terms = _kl(teacher, student) if beta == 0.0 else _kl(student, teacher)
    else:
        shares = torch.tensor([beta, 1 - beta], dtype=student.dtype, device=student.device).log()
        mixture = torch.logaddexp(teacher + shares[0], student + shares[1])
        terms = beta * _kl(teacher, mixture) + (1 - beta) * _kl(student, mixture)
    return terms.masked_fill(~known, 0.0).sum(dim=1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """Terms of KL(p || q)."""
    return p.exp() * (p - q)
