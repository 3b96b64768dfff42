"""`GenerationConfig`: how tokens are sampled and when a sequence ends. Imports no torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reallm.arguments import NamedFields, check_instance, check_items, check_names
from reallm.errors import ConfigError
from reallm.field_types import check_fields

_NAMES_ELSEWHERE = {
    "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "do_sample": "temperature",
    "stop_strings": "stop",
    "num_return_sequences": "n",
    "eos_token_id": "stop_token_ids",
}


@dataclass(frozen=True)
class GenerationConfig(NamedFields):
    """Settings for sampling tokens and for ending a sequence.

    Nothing else in a checkpoint's `generation_config.json` than its end-of-sequence tokens has an effect.

    Raises:
        ConfigError: a value is not allowed; names it.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    """Number of tokens before which `stop_token_ids` are not sampled."""
    temperature: float | None = None
    """Divisor of the logits; 0 is greedy: always the most likely token. None: 1 with `top_k`, `top_p`, `min_p` or
    `n > 1`, which say to sample, else 0."""
    top_k: int | None = None
    """Sample from the `top_k` most likely tokens."""
    top_p: float | None = None
    """Sample from the smallest set of most likely tokens whose probabilities sum to at least `top_p`; after `top_k`."""
    min_p: float | None = None
    """Sample from tokens that have at least `min_p` times the probability of the most likely one; after `top_p`."""
    stop_token_ids: tuple[int, ...] | None = None
    """Token ids that end a sequence; the one that does is part of the completion. None: all end-of-sequence tokens of
    the checkpoint."""
    stop: tuple[str, ...] = ()
    """Strings that end a sequence when its text contains one, and that its text ends before; they need a tokenizer."""
    n: int = 1
    """Number of samples of each prompt; the prompt is computed once."""
    seed: int = 0
    """With a request's key, the index of the sample and the position it determines all random numbers."""
    model_logprobs: bool = False
    """Whether completions have log-probabilities at temperature 1."""
    kept_mass: bool = False
    """Whether completions have the probability of the tokens from which each was drawn, at the sampling temperature."""
    kept_ids: bool = False
    """Whether completions have the ids of the tokens from which each was drawn."""
    top_logprobs: int = 0
    """Number of most likely tokens of which completions have the log-probabilities, at each position."""

    @property
    def effective_temperature(self) -> float:
        """The temperature, after its default is applied."""
        if self.temperature is not None:
            return self.temperature
        return 1.0 if self.truncates or self.n > 1 else 0.0

    @property
    def truncates(self) -> bool:
        """Whether `top_k`, `top_p` or `min_p` is set."""
        return not (self.top_k is None and self.top_p is None and self.min_p is None)

    def __post_init__(self) -> None:
        check_fields(self)
        _at_least("max_new_tokens", self.max_new_tokens, 0)
        _at_least("min_new_tokens", self.min_new_tokens, 0)
        if self.min_new_tokens > self.max_new_tokens:
            raise ConfigError(
                f"min_new_tokens={self.min_new_tokens} is more than max_new_tokens={self.max_new_tokens}; lower it"
            )
        if self.temperature is not None and not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature={self.temperature} must be at least 0 (0 is greedy)")
        if self.top_k is not None and self.top_k < 1:
            raise ConfigError(f"top_k={self.top_k} must be at least 1; leave it out to sample from all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p} must be more than 0 and at most 1")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ConfigError(f"min_p={self.min_p} must be at least 0 and at most 1")
        if "" in self.stop:
            raise ConfigError("stop has an empty string, which every text contains")
        _at_least("n", self.n, 1)
        if self.n > 1 and self.temperature == 0:
            raise ConfigError(f"n={self.n} with temperature=0 would give {self.n} equal samples; raise temperature")
        _at_least("top_logprobs", self.top_logprobs, 0)


def as_generation_config(function: str, config: GenerationConfig | None, fields: Mapping[str, Any]) -> GenerationConfig:
    """A configuration with some fields replaced, as a function takes them as keyword arguments.

    Raises:
        ConfigError: there is no such field, or a value is not allowed.
    """
    names = ["prompts", "config", "tokenizer", *(item.name for item in dataclasses.fields(GenerationConfig))]
    check_names(function, fields, names, _NAMES_ELSEWHERE)
    if config is not None:
        check_instance("config", config, GenerationConfig, "write GenerationConfig(...)")
    found = {name: value for name, value in fields.items() if not (name == "stop" and value is None)}
    for name, item_type in (("stop", str), ("stop_token_ids", int)):
        if found.get(name) is not None:
            found[name] = tuple(check_items(name, found[name], item_type))
    return dataclasses.replace(config or GenerationConfig(), **found)


def _at_least(name: str, value: int, lowest: int) -> None:
    if value < lowest:
        raise ConfigError(f"{name}={value} must be at least {lowest}")
