"""Sampling the next token from logits.

Shapes: S sequences, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reallm.arguments import NamedFields
from reallm.errors import ConfigError
from reallm.field_types import check_fields


@dataclass(frozen=True)
class SamplingConfig(NamedFields):
    """Settings for sampling tokens and for ending a sequence.

    Raises:
        ConfigError: a value is not allowed; names it.
    """

    max_new_tokens: int = 128
    temperature: float | None = None
    """Divisor of the logits; 0 is greedy: always the most likely token. None: 1 with `top_k` or `top_p`, else 0."""
    top_k: int | None = None
    """Sample from the `top_k` most likely tokens."""
    top_p: float | None = None
    """Sample from the smallest set of most likely tokens whose probabilities sum to at least `top_p`."""
    stop_token_ids: tuple[int, ...] = ()
    """Token ids that end a sequence; the one that does is part of the completion."""
    stop: tuple[str, ...] = ()
    """Strings that end a sequence when its text contains one, and that its text ends before; they need a tokenizer."""
    seed: int = 0

    @property
    def effective_temperature(self) -> float:
        """The temperature, after its default is applied."""
        if self.temperature is not None:
            return self.temperature
        return 0.0 if self.top_k is None and self.top_p is None else 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature} must be at least 0 (0 is greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1; leave it out to sample from all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be more than 0 and at most 1")
        if "" in self.stop:
            raise ConfigError("stop has an empty string, which every text contains")


def sample(logits: Tensor, sampling: SamplingConfig, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Sample a token for each sequence, with the generator of that sequence.

    Args:
        logits: [S, V].
        sampling: temperature, top-k and top-p.
        generators: one for each sequence, on the CPU.

    Returns:
        Tokens [S] int64, and their log-probabilities [S] float32 under the model at this temperature (1 if greedy),
        before top-k and top-p. Where logits are NaN or +infinity the log-probability is NaN, and the token any token.
    """
    temperature = sampling.effective_temperature
    logp = torch.log_softmax(logits.float() / temperature if temperature else logits.float(), dim=-1)
    if temperature == 0:
        tokens = logp.argmax(dim=-1)
    else:
        # one uniform number for each sequence, so that its token does not depend on its neighbours in the batch
        uniform = torch.cat([torch.rand(1, generator=generator) for generator in generators]).to(logits.device)
        tokens = _inverse_transform(logp, uniform, sampling)
    return tokens, logp.gather(1, tokens[:, None])[:, 0]


def _inverse_transform(logp: Tensor, uniform: Tensor, sampling: SamplingConfig) -> Tensor:
    """Inverse-transform sampling over the tokens from most to least likely: `logp` [S, V], `uniform` [S] in [0, 1)."""
    if sampling.top_k is not None and sampling.top_k < logp.shape[-1]:
        ordered, order = logp.topk(sampling.top_k, dim=-1)
    else:
        ordered, order = logp.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.exp()
    if sampling.top_k is not None:
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    cumulative = probabilities.cumsum(dim=-1)
    if sampling.top_p is not None:
        # a token is kept if the tokens before it have not reached top_p yet; the first is always kept
        probabilities = probabilities.masked_fill(cumulative - probabilities >= sampling.top_p, 0.0)
        cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:]
    ranks = torch.searchsorted(cumulative, uniform[:, None] * total, right=True)
    # rounding may lead past the last token that is kept
    last_kept = ((probabilities > 0).sum(dim=-1, keepdim=True) - 1).clamp(min=0)  # none if they are NaN
    return order.gather(1, torch.minimum(ranks, last_kept))[:, 0]
