"""Answers a request, whole or as a stream of server-sent events, for as long as its client is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from fastapi import Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from reallm.generation.request import Completion, Event, TokenEvent
from reallm.serving.answer import Answer
from reallm.serving.errors import APIError, ClientGoneError
from reallm.serving.requests import GenerationRequest
from reallm.serving.response_forms import ResponseForm

T = TypeVar("T")


async def respond(request: Request, body: GenerationRequest, answer: Answer, form: ResponseForm) -> Response:
    """The response to a request; if its client goes away, the answer is cancelled.

    Raises:
        APIError: the engine refuses the request, or fails before a stream of it begins.
        ClientGoneError: the client went away before the response began.
    """
    try:
        if not body.stream:
            completions = await _unless_gone(request, _completions(answer))
            whole = form.whole(completions, answer.usage)
            return Response(whole.model_dump_json(), media_type="application/json")
        events = aiter(answer)
        first = await _unless_gone(request, anext(events))
    except BaseException:
        answer.cancel()
        raise
    include_usage = body.stream_options is not None and body.stream_options.include_usage
    return _EventStream(answer, _chunks(answer, first, events, form, include_usage=include_usage))


async def _completions(answer: Answer) -> list[Completion]:
    """All completions of an answer, in order of prompts, then samples."""
    ended: dict[int, Completion] = {}
    async for index, event in answer:
        if not isinstance(event, TokenEvent):
            ended[index] = event.completion
    return [ended[index] for index in sorted(ended)]


async def _chunks(
    answer: Answer,
    first: tuple[int, Event],
    others: AsyncIterator[tuple[int, Event]],
    form: ResponseForm,
    *,
    include_usage: bool,
) -> AsyncIterator[str]:
    """The server-sent events of an answer; an error that ends it is the last one."""
    for chunk in form.first_chunks(answer.n_samples):
        yield _sent_event(chunk.model_dump_json())
    try:
        async for index, event in _joined(first, others):
            if not isinstance(event, TokenEvent):
                yield _sent_event(form.last_chunk(index, event).model_dump_json())
            elif token := form.token_chunk(index, event):
                yield _sent_event(token.model_dump_json())
    except APIError as error:
        yield _sent_event(error.body)
        return
    if include_usage:
        yield _sent_event(form.usage_chunk(answer.usage).model_dump_json())
    yield _sent_event("[DONE]")


async def _joined(first: T, others: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    async for other in others:
        yield other


def _sent_event(data: str) -> str:
    return f"data: {data}\n\n"


class _EventStream(StreamingResponse):
    """A stream of server-sent events that cancels its answer when it ends early, as when the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, answer: Answer, chunks: AsyncIterator[str]) -> None:
        super().__init__(chunks, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of work that is cancelled when the client goes away; ClientGoneError is then raised."""
    doing, watching = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((doing, watching), return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientGoneError
        return doing.result()
    finally:
        doing.cancel()
        watching.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has gone away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
