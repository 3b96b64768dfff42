"""Generalised advantage estimation over packed answers (arXiv 1506.02438).

Shapes: S answers, N tokens of answers, L tokens of the longest answer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def gae(
    rewards: Tensor,
    values: Tensor,
    lengths: Tensor,
    bootstrap: Tensor,
    gamma: float,
    lam: float,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages [N] and returns [N] float64 of the tokens of answers that follow one another.

    With δ_t = r_t + gamma V_{t+1} - V_t: A_t = δ_t + gamma lam A_{t+1}, and returns are A_t + V_t.

    Tokens that are not in `mask`, such as those of tools, are stepped over: what follows a token is the next one that
    is, and a reward on them belongs to the one before. Their own advantages and returns are 0.

    Args:
        rewards: reward [N] of each token.
        values: value [N] of the state before each token.
        lengths: tokens [S] int64 of each answer; may be 0.
        bootstrap: value [S] of the state after each answer; 0 for an answer that has ended.
        gamma: discount of a token.
        lam: from 0 (one token ahead) to 1 (whole returns).
        mask: tokens [N] bool of the policy; None: all.
    """
    if mask is not None:
        return _masked(rewards, values, lengths, bootstrap, gamma, lam, mask)
    rewards, values = rewards.double(), values.double()
    following = torch.zeros_like(values)
    following[:-1] = values[1:]
    has_tokens = lengths > 0
    following[lengths.cumsum(0)[has_tokens] - 1] = bootstrap.double()[has_tokens]
    advantages = _discounted(rewards + gamma * following - values, lengths, gamma * lam)
    return advantages, advantages + values


def _masked(
    rewards: Tensor, values: Tensor, lengths: Tensor, bootstrap: Tensor, gamma: float, lam: float, mask: Tensor
) -> tuple[Tensor, Tensor]:
    sequences = torch.arange(len(lengths)).repeat_interleave(lengths)
    n_kept = torch.zeros_like(lengths).index_add(0, sequences, mask.to(lengths.dtype))
    # index of the last token in the mask up to each token; it may lie in another answer
    before = mask.cumsum(0) - 1
    same = (before >= 0) & (before >= (n_kept.cumsum(0) - n_kept)[sequences])
    kept_rewards = torch.zeros(int(mask.sum()), dtype=torch.float64)
    kept_rewards.index_add_(0, before[same], rewards.double()[same])
    found = gae(kept_rewards, values[mask], n_kept, bootstrap, gamma, lam)
    advantages, returns = (torch.zeros(len(mask), dtype=torch.float64).masked_scatter(mask, one) for one in found)
    return advantages, returns


def _discounted(deltas: Tensor, lengths: Tensor, discount: float) -> Tensor:
    """Sums [N] of each value and those after it in its answer, each times one more `discount`."""
    if not len(deltas):
        return deltas
    padded = pad_sequence(list(deltas.split(lengths.tolist())))  # [L, S]
    for t in range(len(padded) - 2, -1, -1):
        padded[t] += discount * padded[t + 1]
    is_token = torch.arange(len(padded)) < lengths[:, None]  # [S, L]
    return padded.T[is_token]
