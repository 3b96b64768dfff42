"""The application: its endpoints, and its errors in the form of the API."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from reallm.generation.request import Request as EngineRequest
from reallm.serving.access_log import AccessLog
from reallm.serving.answer import Answer
from reallm.serving.bodies import DrainBody, parse_body, read_body
from reallm.serving.engine_requests import chat_requests, completion_requests
from reallm.serving.engine_thread import EngineThread
from reallm.serving.errors import CLIENT_CLOSED_REQUEST, APIError, ClientGoneError
from reallm.serving.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest
from reallm.serving.respond import respond
from reallm.serving.response_forms import ChatForm, CompletionForm
from reallm.serving.responses import LoadResponse, ModelCard, ModelList
from reallm.serving.served_model import ServedModel

B = TypeVar("B", bound=GenerationRequest)

_ENDPOINTS = "see POST /v1/chat/completions, POST /v1/completions and GET /v1/models"


def create_app(served: ServedModel, engine: EngineThread, *, api_key: str | None = None) -> FastAPI:
    """The application that serves a model.

    Args:
        served: the model.
        engine: the thread that generates with it; the caller starts and ends it.
        api_key: key that requests must have as `Authorization: Bearer KEY`; None: no key is asked for.
    """
    app = FastAPI(title="reallm", openapi_url=None, redirect_slashes=False)
    app.add_middleware(DrainBody)
    app.add_middleware(AccessLog)
    checked = [Depends(_key_check(api_key))]
    app.include_router(_endpoints(served, engine), dependencies=checked)

    @app.get("/health", response_model=None)
    async def health() -> Response:
        """Whether the engine runs."""
        if engine.has_failed:
            raise APIError("the engine has failed; the server ends", status=503)
        return JSONResponse({"status": "ok"})

    @app.get("/load", dependencies=checked)
    async def load() -> LoadResponse:
        """What the engine is busy with."""
        found = await engine.load()
        return LoadResponse(
            running=found.n_sequences - found.n_waiting,
            waiting=found.n_waiting,
            free_kv_cache_tokens=found.n_free_tokens,
        )

    handlers: dict[Any, Callable[[Request, Any], Awaitable[Response]]] = {
        APIError: _api_error,
        ClientGoneError: _client_gone,
        HTTPException: _http_error,
        Exception: _defect,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    return app


def _endpoints(served: ServedModel, engine: EngineThread) -> APIRouter:
    router = APIRouter(prefix="/v1")
    tokenizing = ThreadPoolExecutor(1, "tokenizer")  # a long prompt must not hold up streams

    async def begin(
        request: Request, kind: type[B], translate: Callable[[B, ServedModel], list[EngineRequest]]
    ) -> tuple[B, Answer]:
        content, content_type = await read_body(request), request.headers.get("Content-Type", "")

        def translated() -> tuple[B, list[EngineRequest]]:
            body = kind.model_validate(parse_body(content, content_type))
            served.check_name(body.model)
            return body, translate(body, served)

        body, requests = await asyncio.get_running_loop().run_in_executor(tokenizing, translated)
        answer = request.state.answer = engine.submit(requests)
        return body, answer

    @router.post("/completions", response_model=None)
    async def completions(request: Request) -> Response:
        """Continue prompts."""
        body, answer = await begin(request, CompletionRequest, completion_requests)
        texts = served.token_texts if body.logprobs is not None else None
        return await respond(request, body, answer, CompletionForm(served.name, texts))

    @router.post("/chat/completions", response_model=None)
    async def chat_completions(request: Request) -> Response:
        """Answer in a conversation."""
        body, answer = await begin(request, ChatCompletionRequest, chat_requests)
        texts = served.token_texts if body.logprobs else None
        return await respond(request, body, answer, ChatForm(served.name, texts))

    @router.get("/models")
    async def models() -> ModelList:
        """The one model that is served."""
        return ModelList(data=[_card(served)])

    @router.get("/models/{name:path}")
    async def model(name: str) -> ModelCard:
        """The model of this name."""
        served.check_name(name)
        return _card(served)

    return router


def _card(served: ServedModel) -> ModelCard:
    return ModelCard(id=served.name, created=served.created, max_model_len=served.context_length)


def _key_check(api_key: str | None) -> Callable[[Request], Awaitable[None]]:
    async def check(request: Request) -> None:
        given = request.headers.get("Authorization", "")
        if api_key is not None and not secrets.compare_digest(given.encode(), f"Bearer {api_key}".encode()):
            problem = "the API key is wrong" if given else "an API key is needed"
            raise APIError(
                f"{problem}; send the header 'Authorization: Bearer KEY'", status=401, code="invalid_api_key"
            )

    return check


async def _api_error(request: Request, error: APIError) -> Response:
    request.state.problem = str(error)
    return Response(error.body, error.status, media_type="application/json")


async def _client_gone(request: Request, error: ClientGoneError) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def _http_error(request: Request, error: HTTPException) -> Response:
    problem = error.detail
    if error.status_code in (404, 405):
        problem = f"there is no {request.method} {quote(request.scope['path'])} here; {_ENDPOINTS}"
    return await _api_error(request, APIError(problem, status=error.status_code))


async def _defect(request: Request, error: Exception) -> Response:
    return await _api_error(request, APIError(f"the server failed: {type(error).__name__}", status=500))
