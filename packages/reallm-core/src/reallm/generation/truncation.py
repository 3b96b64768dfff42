"""Draws from a part of the distribution: what is left of it by banned tokens, top-k, top-p and min-p.

Equally likely tokens are ordered by their ids, lowest first, so that which ones are kept does not depend on the device.

Shapes: N sequences, V vocabulary, K most likely tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from reallm.generation.config import GenerationConfig
from reallm.generation.distribution import Distribution
from reallm.model import softmax

N_RANKED = 128
"""Number of the most likely tokens that top-p and min-p look at first; if they need more, 16 times as many."""


def ban(logits: Tensor, banned: Sequence[Sequence[int]]) -> Tensor:
    """Logits [N, V], with -infinity for banned tokens.

    Args:
        logits: [N, V].
        banned: for each row the ids that are banned; ids outside of the vocabulary are ignored.
    """
    places = [(row, token) for row, ids in enumerate(banned) for token in ids if 0 <= token < logits.shape[1]]
    if not places:
        return logits
    rows, tokens = torch.tensor(places, device=logits.device).t()
    return logits.index_put((rows, tokens), logits.new_tensor(-math.inf))


def uses_top_k(config: GenerationConfig, n_vocab: int) -> bool:
    """Whether top-k drops tokens."""
    return config.top_k is not None and config.top_k < n_vocab


def uses_threshold(config: GenerationConfig) -> bool:
    """Whether top-p or min-p drop tokens."""
    return (config.top_p is not None and config.top_p < 1) or bool(config.min_p)


class TruncatedDraw(NamedTuple):
    """Tokens drawn from those that truncation kept."""

    tokens: Tensor
    """[N, 1]."""
    logprobs: Tensor
    """[N, 1] float64: log-probabilities among the kept tokens."""
    kept_ids: list[Sequence[int]]
    """Ids of the kept tokens, ascending; empty for rows that do not ask for them."""


def draw_truncated(
    whole: Distribution, configs: Sequence[GenerationConfig], uniform: Tensor, n_ranked: int | None = None
) -> TruncatedDraw:
    """Draw, in the order of ids, from the tokens that top-k, top-p and min-p, in this order, keep.

    Args:
        whole: the distribution before truncation.
        configs: one for each row; all use top-k, or none does.
        uniform: [N, 1] float64 in [0, 1).
        n_ranked: number of most likely tokens to look at first; None: as many as top-k needs, or `N_RANKED`.
    """
    n_vocab = whole.logits.shape[1]
    if n_ranked is None:
        n_ranked = max((config.top_k or N_RANKED) for config in configs) + 1
    values, ids = most_likely(whole.logits, min(n_ranked, n_vocab))
    is_kept = _is_kept(whole.logprobs(ids).exp(), configs, has_top_k=uses_top_k(configs[0], n_vocab))
    order = ids.masked_fill(~is_kept, n_vocab).argsort(dim=-1)
    ids, values = ids.gather(1, order), values.masked_fill(~is_kept, -math.inf).gather(1, order)
    # sums over whole blocks do not depend on how many tokens there are that are not kept
    values = F.pad(values, (0, -values.shape[1] % softmax.BLOCK_SIZE), value=-math.inf)
    kept = Distribution(values, whole.inverse_temperature)
    places = kept.draw(uniform)
    tokens = ids.gather(1, places.clamp(max=ids.shape[1] - 1))  # only NaN leads beyond the ids
    draw = TruncatedDraw(tokens, kept.logprobs(places), [()] * len(configs))
    for row, config in enumerate(configs):
        if config.kept_ids:
            draw.kept_ids[row] = ids[row, : int(is_kept[row].sum())].tolist()
    # the kept tokens are the first of the most likely ones: if the last one is kept, there may be more
    short = is_kept[:, -1].nonzero()[:, 0].tolist() if ids.shape[1] < n_vocab else []
    if short:
        rest = draw_truncated(whole.rows(short), [configs[row] for row in short], uniform[short], 16 * n_ranked)
        draw.tokens[short], draw.logprobs[short] = rest.tokens, rest.logprobs
        for row, kept_ids in zip(short, rest.kept_ids, strict=True):
            draw.kept_ids[row] = kept_ids
    return draw


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
    rows = is_tied.nonzero()[:, 0]
    if len(rows):  # topk has chosen any of the tokens that are as likely as the last one
        is_equal = logits[rows] == cut[rows, None]
        places = (values[rows] > cut[rows, None]).sum(dim=-1, keepdim=True) + is_equal.cumsum(dim=-1) - 1
        among, tokens = (is_equal & (places < k)).nonzero().unbind(1)
        ids[rows[among], places[among, tokens]] = tokens
    return values, ids


def _is_kept(probabilities: Tensor, configs: Sequence[GenerationConfig], *, has_top_k: bool) -> Tensor:
    """Which of the most likely tokens, with their probabilities [N, K] in descending order, are kept: [N, K] bool."""

    def column(values: Sequence[float | None], default: float) -> Tensor:
        rows = [[default if value is None else value] for value in values]
        return torch.tensor(rows, dtype=torch.float64, device=probabilities.device)

    least = probabilities[:, :1] * column([config.min_p for config in configs], 0.0)
    is_kept = (probabilities > 0) & (probabilities >= least)  # of few tokens banned ones are among the most likely
    if has_top_k:
        rank = torch.arange(probabilities.shape[1], device=probabilities.device)
        is_among = rank < column([config.top_k for config in configs], math.inf)
        is_kept &= is_among
        probabilities = probabilities * is_among
    shares = softmax.fixed_point(probabilities)
    cumulative = shares.cumsum(dim=-1)
    total = cumulative[:, -1:] if has_top_k else 2.0**60
    top_p = column([None if config.top_p == 1 else config.top_p for config in configs], math.inf)
    # a token is kept if those before it do not have the probability yet
    return is_kept & (cumulative - shares < top_p * total)
