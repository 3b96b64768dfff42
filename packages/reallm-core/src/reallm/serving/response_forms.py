"""The responses of the two endpoints, whole or in chunks, from what the engine gives."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from pydantic import BaseModel

from reallm.generation.request import Completion, FinishedEvent, TokenEvent
from reallm.serving.logprobs import ScoredToken, chat_logprobs, completion_logprobs
from reallm.serving.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatLogprobs,
    ChatResponse,
    CompletionChoice,
    CompletionLogprobs,
    CompletionResponse,
    Delta,
    Message,
    Usage,
)
from reallm.serving.token_texts import TokenTexts


class ResponseForm(Protocol):
    """The form of the responses of an endpoint. `index` is the index of a sample among all of a request."""

    def whole(self, completions: Sequence[Completion], usage: Usage) -> BaseModel:
        """The response that is not streamed."""

    def first_chunks(self, n: int) -> Iterable[BaseModel]:
        """The chunks before the text of `n` samples."""

    def token_chunk(self, index: int, event: TokenEvent) -> BaseModel | None:
        """The chunk of a token; None if it has nothing to say."""

    def last_chunk(self, index: int, event: FinishedEvent) -> BaseModel:
        """The chunk of the end of a sample."""

    def usage_chunk(self, usage: Usage) -> BaseModel:
        """The chunk with the numbers of tokens."""


class CompletionForm:
    """The form of `/v1/completions`.

    Args:
        model: name of the model.
        texts: texts of tokens; None: without log-probabilities.
    """

    def __init__(self, model: str, texts: TokenTexts | None) -> None:
        self._header = _header("cmpl", model)
        self._texts = texts
        self._offsets: Counter[int] = Counter()

    def whole(self, completions: Sequence[Completion], usage: Usage) -> CompletionResponse:
        """See `ResponseForm`."""
        return self._response(
            [
                self._choice(i, one.text or "", ScoredToken.all_of(one), one.finish_reason)
                for i, one in enumerate(completions)
            ],
            usage,
        )

    def first_chunks(self, n: int) -> Iterable[BaseModel]:
        """See `ResponseForm`."""
        return ()

    def token_chunk(self, index: int, event: TokenEvent) -> CompletionResponse | None:
        """See `ResponseForm`."""
        if not event.text and self._texts is None:
            return None
        return self._response([self._choice(index, event.text, [ScoredToken.of_event(event)])])

    def last_chunk(self, index: int, event: FinishedEvent) -> CompletionResponse:
        """See `ResponseForm`."""
        return self._response([self._choice(index, event.text, (), event.completion.finish_reason)])

    def usage_chunk(self, usage: Usage) -> CompletionResponse:
        """See `ResponseForm`."""
        return self._response([], usage)

    def _response(self, choices: list[CompletionChoice], usage: Usage | None = None) -> CompletionResponse:
        return CompletionResponse(**self._header, object="text_completion", choices=choices, usage=usage)

    def _choice(
        self, index: int, text: str, tokens: Sequence[ScoredToken], finish_reason: str | None = None
    ) -> CompletionChoice:
        logprobs: CompletionLogprobs | None = None
        if self._texts is not None and tokens:
            logprobs = completion_logprobs(tokens, self._texts, self._offsets[index])
            self._offsets[index] += sum(self._texts.n_characters(token.token_id) for token in tokens)
        return CompletionChoice(index=index, text=text, logprobs=logprobs, finish_reason=finish_reason)


class ChatForm:
    """The form of `/v1/chat/completions`; see `CompletionForm`."""

    def __init__(self, model: str, texts: TokenTexts | None) -> None:
        self._header = _header("chatcmpl", model)
        self._texts = texts

    def whole(self, completions: Sequence[Completion], usage: Usage) -> ChatResponse:
        """See `ResponseForm`."""
        choices = [
            ChatChoice(
                index=i,
                message=Message(content=one.text or ""),
                logprobs=self._logprobs(ScoredToken.all_of(one)),
                finish_reason=one.finish_reason,
            )
            for i, one in enumerate(completions)
        ]
        return ChatResponse(**self._header, object="chat.completion", choices=choices, usage=usage)

    def first_chunks(self, n: int) -> Iterable[ChatChunk]:
        """See `ResponseForm`."""
        return [self._chunk(i, Delta(role="assistant", content="")) for i in range(n)]

    def token_chunk(self, index: int, event: TokenEvent) -> ChatChunk | None:
        """See `ResponseForm`."""
        if not event.text and self._texts is None:
            return None
        return self._chunk(index, Delta(content=event.text), self._logprobs([ScoredToken.of_event(event)]))

    def last_chunk(self, index: int, event: FinishedEvent) -> ChatChunk:
        """See `ResponseForm`."""
        delta = Delta(content=event.text) if event.text else Delta()
        return self._chunk(index, delta, finish_reason=event.completion.finish_reason)

    def usage_chunk(self, usage: Usage) -> ChatChunk:
        """See `ResponseForm`."""
        return ChatChunk(**self._header, object="chat.completion.chunk", choices=[], usage=usage)

    def _chunk(
        self, index: int, delta: Delta, logprobs: ChatLogprobs | None = None, finish_reason: str | None = None
    ) -> ChatChunk:
        choice = ChatChunkChoice(index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason)
        return ChatChunk(**self._header, object="chat.completion.chunk", choices=[choice], usage=None)

    def _logprobs(self, tokens: Sequence[ScoredToken]) -> ChatLogprobs | None:
        return None if self._texts is None else chat_logprobs(tokens, self._texts)


def _header(prefix: str, model: str) -> dict[str, Any]:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
