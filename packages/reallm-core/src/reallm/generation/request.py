"""What a generation engine takes and gives: requests, completions, and the events of a step. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

from reallm.arguments import NamedFields, check_count, check_instance, check_items
from reallm.errors import ConfigError
from reallm.generation.config import GenerationConfig

FinishReason = Literal["stop", "length", "cancelled"]
"""`stop`: by a token or a string; `length`: `max_new_tokens` were generated; `cancelled`: by the caller."""


@dataclass(frozen=True)
class Request(NamedFields):
    """A prompt to be continued `config.n` times.

    Raises:
        ConfigError: a value is of a wrong kind; names it.
    """

    prompt_ids: tuple[int, ...]
    """The token ids of the prompt, also given as a list, a tensor or an array."""
    config: GenerationConfig = field(default_factory=GenerationConfig)
    key: int | str = 0
    """Name of the request's random stream: two requests with the same key, seed and prompt get the same tokens."""
    first_sample: int = 0
    """Index of the first sample, which like the key determines its random numbers: a group of samples can be split into
    several requests."""

    def __post_init__(self) -> None:
        ids: Any = self.prompt_ids
        if isinstance(ids, str):
            raise ConfigError("prompt_ids must be token ids, not text; write tokenizer.encode(text)")
        ids = ids.tolist() if hasattr(ids, "tolist") else ids  # of a tensor or an array
        object.__setattr__(self, "prompt_ids", tuple(check_items("prompt_ids", ids, int)))
        check_instance("config", self.config, GenerationConfig, "write GenerationConfig(...)")
        key: Any = self.key
        if not isinstance(key, str | Integral):
            raise ConfigError(f"key={key!r} must be a whole number or a string")
        object.__setattr__(self, "key", key if isinstance(key, str) else int(key))
        object.__setattr__(self, "first_sample", check_count("first_sample", self.first_sample, at_least=0))


@dataclass
class Completion:
    """A prompt and the tokens generated after it.

    All lists but `prompt_ids` have one entry for each of `token_ids`.
    """

    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    """The generated tokens: all that were sampled, the stop token or the tokens of a stop string included."""
    logprobs: list[float] = field(default_factory=list)
    """Log-probabilities under the model at the sampling temperature (1 if greedy), before any truncation."""
    finish_reason: FinishReason = "length"
    text: str | None = None
    """The generated tokens as text without special tokens, up to where a stop string begins, even if that is inside a
    token; None without a tokenizer."""
    sample: int = 0
    """Index of this sample of the prompt."""
    stop_token: int | None = None
    """The token of `stop_token_ids` that ended the sequence, if one did."""
    stop_string: str | None = None
    """The string of `stop` that ended the sequence, if one did."""
    model_logprobs: list[float] | None = None
    """Log-probabilities at temperature 1; None unless asked for."""
    kept_mass: list[float] | None = None
    """Probability, at the sampling temperature, of all tokens that `top_k`, `top_p` and `min_p` left; None unless asked
    for. The log-probability of a token under the distribution it was drawn from is `logprob - log(kept_mass)`."""
    kept_ids: list[list[int]] | None = None
    """Ids of the tokens that were left; None unless asked for."""
    top_logprobs: list[list[tuple[int, float]]] | None = None
    """The most likely tokens, best first, with log-probabilities as in `logprobs`; None unless asked for."""

    @property
    def is_finite(self) -> bool:
        """Whether all logits were finite; if not, the last log-probability is NaN, and the sequence has ended."""
        return not self.logprobs or not math.isnan(self.logprobs[-1])


@dataclass(frozen=True)
class TokenEvent:
    """A token was generated."""

    request_id: int
    sample: int
    token_id: int
    logprob: float
    text: str
    """Text that became certain with it: whole characters, and no beginning of a stop string; may be empty. The pieces
    of a sample, and the rest in its `FinishedEvent`, are the text of its completion."""
    top_logprobs: list[tuple[int, float]] | None = None
    """As in `Completion`, at this position."""


@dataclass(frozen=True)
class FinishedEvent:
    """A sample has ended."""

    request_id: int
    sample: int
    completion: Completion
    text: str
    """The rest of the text, which was held back; often empty."""


Event = TokenEvent | FinishedEvent
