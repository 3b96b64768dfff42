"""An engine without a network: its tokens are drawn from the key, the sample and the position of a request alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from reallm.errors import DataError
from reallm.generation.request import Completion, Event, FinishedEvent, FinishReason, Request, TokenEvent
from reallm.generation.text import TextStream, TokenDecoder


class FakeEngine:
    """Has the methods of `GenerationEngine`; each step gives every sample that has not ended one token.

    Args:
        tokenizer: decodes the tokens.
        length: number of tokens of a request, at most `max_new_tokens`.
        tokens: tokens of a request; None: random ones.
        max_prompt: most tokens of a prompt that it takes.
        on_step: called before each step.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        length: Callable[[Request], int] = lambda request: 1 + hash(request.key) % 7,
        tokens: Callable[[Request], list[int]] | None = None,
        max_prompt: int = 1_000,
        on_step: Callable[[], object] = lambda: None,
    ) -> None:
        self.tokenizer, self.length, self.tokens = tokenizer, length, tokens
        self.max_prompt, self.on_step = max_prompt, on_step
        self.requests: list[Request] = []
        self.most_running = 0
        self._running: dict[tuple[int, int], tuple[Completion, TextStream]] = {}
        self._events: list[Event] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._events)

    def add(self, request: Request, *, name: str = "the prompt") -> int:
        if len(request.prompt_ids) > self.max_prompt:
            raise DataError(f"{name} has {len(request.prompt_ids)} tokens; shorten it")
        number = len(self.requests)
        self.requests.append(request)
        for sample in range(request.config.n):
            completion = Completion(list(request.prompt_ids), sample=sample, text="")
            stream = TextStream(TokenDecoder(self.tokenizer), request.config.stop)
            self._running[number, sample] = completion, stream
        self.most_running = max(self.most_running, len(self._running))
        return number

    def cancel(self, request_id: int) -> None:
        for number, sample in [*self._running]:
            if number == request_id:
                self._events.append(self._end(number, sample, "cancelled"))

    def step(self) -> list[Event]:
        self.on_step()
        events, self._events = self._events, []
        for number, sample in [*self._running]:
            request = self.requests[number]
            completion, stream = self._running[number, sample]
            position = len(completion.token_ids)
            if self.tokens is None:
                draw = random.Random(f"{request.config.seed} {request.key} {sample} {position}")
                token, n_tokens = draw.randrange(len(self.tokenizer)), self.length(request)
            else:
                token, n_tokens = self.tokens(request)[position], len(self.tokens(request))
            completion.token_ids.append(token)
            completion.logprobs.append(-1.0)
            piece = stream.push(token)
            events.append(TokenEvent(number, sample, token, -1.0, piece.text))
            if piece.stop_string is not None or position + 1 == n_tokens:
                events.append(self._end(number, sample, "stop"))
            elif position + 1 == request.config.max_new_tokens:
                events.append(self._end(number, sample, "length"))
        return events

    def _end(self, number: int, sample: int, reason: FinishReason) -> FinishedEvent:
        completion, stream = self._running.pop((number, sample))
        rest = stream.finish()
        completion.text, completion.finish_reason, completion.stop_string = stream.text, reason, stream.stop_string
        return FinishedEvent(number, sample, completion, rest)


def as_engine(engine: FakeEngine) -> Any:
    """The engine, for functions that want a real one."""
    return engine
