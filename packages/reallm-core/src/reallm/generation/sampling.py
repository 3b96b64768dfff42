"""Samples the next token of each sequence from logits.

Each row of the result depends on that row of the logits, its configuration and its position in a stream of random
numbers, not on the other rows.

Shapes: A sequences, N of them that are computed together, V vocabulary.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reallm.generation.config import GenerationConfig
from reallm.generation.distribution import Distribution
from reallm.generation.random import StreamPosition, uniform
from reallm.generation.truncation import ban, draw_truncated, most_likely, uses_threshold, uses_top_k
from reallm.model import softmax

CHUNK_BYTES = {"cpu": 4 << 20, "cuda": 512 << 20}
"""Size of the float32 logits that are computed together; on a CPU within its caches."""


OPTIONAL = ("model_logprobs", "kept_mass", "kept_ids", "top_logprobs")
"""Fields of `Sampled`, by which configurations ask for them."""


class Sampled(NamedTuple):
    """The next token of each sequence; all fields have a row for each."""

    token_ids: Tensor
    """[A] int64."""
    logprobs: Tensor
    """[A], at least float32: log-probabilities at the sampling temperature (1 if greedy), before any truncation. NaN
    where logits are NaN or +infinity; the token is any token there."""
    model_logprobs: Tensor | None
    """[A], at least float32: log-probabilities at temperature 1; None unless a configuration asks for them."""
    kept_mass: Tensor | None
    """[A], at least float32: probability, at the sampling temperature, of the tokens from which each was drawn; None
    unless a configuration asks for it."""
    kept_ids: list[Sequence[int]] | None
    """Ids of these tokens, ascending; empty for rows that do not ask for them, None if none does."""
    top_logprobs: list[list[tuple[int, float]]] | None
    """As many of the most likely tokens as a row asks for, best first, with log-probabilities as in `logprobs`; None
    if none does."""


@torch.no_grad()
def sample(
    logits: Tensor,
    configs: Sequence[GenerationConfig],
    streams: Sequence[StreamPosition],
    *,
    banned: Sequence[Sequence[int]] = (),
) -> Sampled:
    """Sample a token for each sequence.

    Greedy rows take the most likely token, among equals the one with the lowest id. Others are drawn from the tokens
    that `top_k`, `top_p` and `min_p` keep.

    Args:
        logits: [A, V].
        configs: one for each row.
        streams: one for each row; its random number follows from it.
        banned: for each row the ids that may not be drawn, such as stop tokens before `min_new_tokens`; empty: none.
    """
    banned = banned or [()] * len(configs)
    assert len(logits) == len(configs) == len(streams) == len(banned), "one entry for each row of the logits"
    wanted = frozenset(name for name in OPTIONAL if any(getattr(config, name) for config in configs))
    is_greedy = not any(config.effective_temperature for config in configs)
    numbers = torch.zeros(len(configs), dtype=torch.float64) if is_greedy else uniform(streams).to(logits.device)
    chunks = _chunks_of_alike(logits, configs, banned)
    parts = [
        _sample_alike(
            _rows_of(logits, rows),
            [configs[row] for row in rows],
            _rows_of(numbers[:, None], rows),
            [banned[row] for row in rows],
            wanted,
        )
        for rows in chunks
    ]
    return parts[0] if len(parts) == 1 else _merged(parts, [row for rows in chunks for row in rows])


def _chunks_of_alike(
    logits: Tensor, configs: Sequence[GenerationConfig], banned: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Rows, grouped by what has to be done for them, in chunks of limited size."""
    n_vocab = logits.shape[1]
    alike = defaultdict(list)
    for row, (config, ids) in enumerate(zip(configs, banned, strict=True)):
        is_greedy = config.effective_temperature == 0
        truncation = None if is_greedy else (uses_top_k(config, n_vocab), uses_threshold(config))
        alike[is_greedy, truncation, bool(ids)].append(row)
    size = max(1, CHUNK_BYTES.get(logits.device.type, 4 << 20) // (4 * n_vocab))
    return [rows[start : start + size] for rows in alike.values() for start in range(0, len(rows), size)] or [[]]


def _rows_of(logits: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows in ascending order, without a copy if they are adjacent."""
    start, stop = (rows[0], rows[-1] + 1) if rows else (0, 0)
    return logits[start:stop] if stop - start == len(rows) else logits[rows]


def _sample_alike(
    logits: Tensor,
    configs: Sequence[GenerationConfig],
    numbers: Tensor,
    banned: Sequence[Sequence[int]],
    wanted: frozenset[str],
) -> Sampled:
    """Sample for rows that `_chunks_of_alike` has put together."""
    n_vocab, dtype = logits.shape[1], torch.promote_types(logits.dtype, torch.float32)
    is_greedy = not configs or configs[0].effective_temperature == 0
    model = allowed = Distribution(logits, _inverse_temperature(configs, logits.device))
    if any(banned):
        allowed = Distribution(ban(logits, banned), model.inverse_temperature)
    kept_ids: Sequence[Sequence[int]] = [range(n_vocab)] * len(configs)
    if is_greedy:
        tokens = allowed.most_likely
        drawn_logprobs, kept_ids = torch.zeros_like(tokens, dtype=torch.float64), tokens.tolist()
    elif uses_top_k(configs[0], n_vocab) or uses_threshold(configs[0]):
        tokens, drawn_logprobs, kept_ids = draw_truncated(allowed, configs, numbers)
    else:
        tokens = allowed.draw(numbers)
        drawn_logprobs = allowed.logprobs(tokens)
        if any(banned) and "kept_ids" in wanted:
            kept_ids = [row.nonzero()[:, 0].tolist() for row in allowed.logits > -math.inf]
    logprobs = model.logprobs(tokens)

    model_logprobs = kept_mass = top_logprobs = None
    if "model_logprobs" in wanted:
        model_logprobs = logprobs if is_greedy else Distribution(logits).logprobs(tokens)
        model_logprobs = model_logprobs[:, 0].to(dtype)
    if "kept_mass" in wanted:
        kept_mass = (logprobs - drawn_logprobs).exp()[:, 0].to(dtype)
    if "top_logprobs" in wanted:
        top_logprobs = _top_logprobs(model, [config.top_logprobs for config in configs])
    asked = [ids if config.kept_ids else () for ids, config in zip(kept_ids, configs, strict=True)]
    return Sampled(
        tokens[:, 0],
        logprobs[:, 0].to(dtype),
        model_logprobs,
        kept_mass,
        asked if "kept_ids" in wanted else None,
        top_logprobs,
    )


def _inverse_temperature(configs: Sequence[GenerationConfig], device: torch.device) -> float | Tensor:
    """Of rows that are all greedy or none of them: one for all if they have the same, else [N, 1] float64."""
    each = [softmax.inverse_of(config.effective_temperature or 1.0) for config in configs]
    if len(set(each)) < 2:
        return each[0] if each else 1.0
    return torch.tensor(each, dtype=torch.float64, device=device)[:, None]


def _top_logprobs(model: Distribution, counts: Sequence[int]) -> list[list[tuple[int, float]]]:
    """As many of the most likely tokens of each row as it asks for, with their log-probabilities."""
    _, ids = most_likely(model.logits, max(1, *counts))
    logprobs = model.logprobs(ids)
    return [
        list(zip(row_ids[:count], row_logprobs[:count], strict=True))
        for row_ids, row_logprobs, count in zip(ids.tolist(), logprobs.tolist(), counts, strict=True)
    ]


def _merged(parts: Sequence[Sampled], order: Sequence[int]) -> Sampled:
    """One result in the order of the rows, from parts that have the rows `order`."""
    places = sorted(range(len(order)), key=order.__getitem__)

    def merge(values: Sequence[Any]) -> Any:
        if values[0] is None:
            return None
        if isinstance(values[0], Tensor):
            return torch.cat(list(values))[places]
        rows = [row for part in values for row in part]
        return [rows[place] for place in places]

    return Sampled(*(merge(values) for values in zip(*parts, strict=True)))
