"""Truncation of the distribution that tokens are drawn from: banned tokens, top-k, top-p and min-p.

Equally likely tokens are ordered by their ids, lowest first, so that which ones are kept does not depend on the device.

Shapes: N sequences, V vocabulary, K most likely tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from reallm.generation.config import GenerationConfig
from reallm.model import softmax

N_RANKED = 1024
"""Number of most likely tokens among which top-p is looked for, before the whole vocabulary is sorted."""


def ban_(logits: Tensor, banned: Sequence[Sequence[int]]) -> Tensor:
    """Set logits [N, V] of banned tokens to -infinity, in place.

    Args:
        logits: [N, V].
        banned: for each row the ids that are banned; ids outside of the vocabulary are ignored.
    """
    places = [(row, token) for row, ids in enumerate(banned) for token in ids if 0 <= token < logits.shape[1]]
    if places:
        rows, tokens = torch.tensor(places, device=logits.device).t()
        logits[rows, tokens] = -math.inf
    return logits


def truncate_(logits: Tensor, configs: Sequence[GenerationConfig], inverse_temperature: float | Tensor) -> Tensor:
    """Set logits of tokens that top-k, top-p and min-p, in this order, do not keep to -infinity, in place.

    Args:
        logits: [N, V], at least float32.
        configs: one for each row.
        inverse_temperature: one for all rows, or [N, 1] float64.
    """
    n_vocab = logits.shape[1]
    inverse = torch.as_tensor(inverse_temperature, dtype=torch.float64, device=logits.device).expand(len(logits), 1)
    with_top_k = [row for row, config in enumerate(configs) if config.top_k is not None and config.top_k < n_vocab]
    with_top_p = [
        row
        for row, config in enumerate(configs)
        if config.top_p is not None and config.top_p < 1 and row not in set(with_top_k)
    ]
    if with_top_k:
        top_k = _column([configs[row].top_k for row in with_top_k], logits)
        top_p = _column([configs[row].top_p for row in with_top_k], logits)
        logits[with_top_k] = _keep_top_k(logits[with_top_k], inverse[with_top_k], top_k, top_p)
    if with_top_p:
        top_p = _column([configs[row].top_p for row in with_top_p], logits)
        logits[with_top_p] = _keep_top_p(logits[with_top_p], inverse[with_top_p], top_p, N_RANKED)
    if any(config.min_p for config in configs):
        least = _column([config.min_p or 0 for config in configs], logits).log()
        shifted = (logits - logits.amax(dim=-1, keepdim=True)) * inverse.to(logits)
        logits.masked_fill_(shifted < least, -math.inf)
    return logits


def most_likely(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Logits and ids [N, K] of the `k` most likely tokens of logits [N, V], best first."""
    if k >= logits.shape[1]:
        values, ids = logits.sort(dim=-1, descending=True, stable=True)
        return values, ids
    values, ids = logits.topk(k + 1)
    cut, is_tied = values[:, k - 1], values[:, k - 1] == values[:, k]
    ids, by_id = ids[:, :k].sort(dim=-1)
    values, by_value = values[:, :k].gather(1, by_id).sort(dim=-1, descending=True, stable=True)
    ids = ids.gather(1, by_value)
    for row in is_tied.nonzero()[:, 0].tolist():  # topk chose among the tokens that are as likely as the last one
        n_above = int((values[row] > cut[row]).sum())
        ids[row, n_above:] = (logits[row] == cut[row]).nonzero()[: k - n_above, 0]
    return values, ids


def _keep_top_k(logits: Tensor, inverse_temperature: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Logits of the `top_k` [N, 1] most likely tokens, or the first of these that have the share `top_p` [N, 1]."""
    values, ids = most_likely(logits, int(top_k.max()))
    values.masked_fill_(torch.arange(values.shape[1], device=values.device) >= top_k, -math.inf)
    weights = softmax.exponentials(values, values[:, :1], inverse_temperature).double()
    cumulative = weights.cumsum(dim=-1)
    values.masked_fill_(cumulative - weights >= top_p * cumulative[:, -1:], -math.inf)
    return torch.full_like(logits, -math.inf).scatter_(1, ids, values)


def _keep_top_p(logits: Tensor, inverse_temperature: Tensor, top_p: Tensor, n_ranked: int) -> Tensor:
    """Logits of the most likely tokens that together have the probability `top_p` [N, 1]."""
    values, ids = most_likely(logits, n_ranked)
    weights = softmax.exponentials(values, values[:, :1], inverse_temperature).double()
    cumulative = weights.cumsum(dim=-1)
    everything = softmax.exponentials(logits, values[:, :1], inverse_temperature)
    wanted = top_p * softmax.total(softmax.block_sums(everything))
    # a token is kept if those before it do not have the probability yet; the first always is
    values.masked_fill_(cumulative - weights >= wanted, -math.inf)
    kept = torch.full_like(logits, -math.inf).scatter_(1, ids, values)
    if n_ranked < logits.shape[1]:
        short = (cumulative[:, -1] < wanted[:, 0]).nonzero()[:, 0]
        if len(short):
            kept[short] = _keep_top_p(logits[short], inverse_temperature[short], top_p[short], logits.shape[1])
    return kept


def _column(values: Sequence[float | None], like: Tensor) -> Tensor:
    """[N, 1] float64, infinity for None."""
    return torch.tensor([[math.inf if value is None else value] for value in values], dtype=torch.float64).to(
        like.device
    )
