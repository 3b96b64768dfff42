"""`ServedModel`: what the server has to know of its model beside the engine."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Self

from reallm.data.chat.template import ChatTemplate
from reallm.data.long_texts import LongTexts
from reallm.errors import DataError, counted
from reallm.serving.errors import APIError
from reallm.serving.token_texts import TokenTexts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reallm.generation.engine import GenerationEngine
    from reallm.model.config import ReaLModelConfig


@dataclass(frozen=True)
class ServedModel:
    """A model under the name that clients give."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    """Number of tokens that the model has, from 0."""
    context_length: int
    """Most tokens of a prompt and its completion together."""
    seed: int = 0
    """Seed of the requests that have none of their own."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Seconds since 1970."""
    _counter: itertools.count[int] = field(default_factory=itertools.count)

    @classmethod
    def of(
        cls,
        config: ReaLModelConfig,
        engine: GenerationEngine,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        seed: int = 0,
    ) -> Self:
        """A model with as much context as it was made for, and as the cache of its engine has room for."""
        longest = engine.longest_sequence
        context_length = config.max_positions if config.outgrown_by(longest) else longest
        return cls(name, tokenizer, config.vocab_size, context_length, seed)

    def check_name(self, name: str | None) -> None:
        """Check the name that a request has for the model, if it has one.

        Raises:
            APIError: there is no such model.
        """
        if name not in (None, self.name):
            raise APIError(
                f"there is no model '{name}' here; this server has '{self.name}'",
                status=404,
                param="model",
                code="model_not_found",
            )

    def check_text(self, text: str, name: str) -> None:
        """Check the text of a prompt, before all of it is tokenized, if it is far longer than the context.

        Raises:
            APIError: it has more tokens; `name` is the parameter that has it.
        """
        first = self._long_texts.first(text, self.context_length + 1)
        if first is not None and len(first.ids) > self.context_length:
            raise APIError(
                f"'{name}' has more than the {counted(self.context_length, 'token')} of context that '{self.name}' "
                "has; shorten it",
                param=name.partition("[")[0],
                code="context_length_exceeded",
            )

    @cached_property
    def _long_texts(self) -> LongTexts:
        return LongTexts(self.tokenizer)

    def next_number(self) -> int:
        """The number of the next request that has no seed of its own, from 0."""
        return next(self._counter)

    @cached_property
    def token_texts(self) -> TokenTexts:
        """The texts of single tokens."""
        return TokenTexts(self.tokenizer)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The chat template; None if the tokenizer has none to choose."""
        try:
            return ChatTemplate(self.tokenizer)
        except DataError:
            return None
