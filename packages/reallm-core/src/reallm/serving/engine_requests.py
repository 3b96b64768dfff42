"""Requests of the API as requests of the engine."""

from __future__ import annotations

from typing import Any

from reallm.data.row import describe
from reallm.errors import ConfigError, counted
from reallm.generation.config import GenerationConfig
from reallm.generation.request import Request
from reallm.serving.errors import APIError
from reallm.serving.prompts import chat_prompt, prompts_of
from reallm.serving.requests import ChatCompletionRequest, CompletionRequest, GenerationRequest
from reallm.serving.served_model import ServedModel

MAX_STOP_STRINGS, MAX_STOP_LENGTH = 64, 256
"""Most stop strings of a request, and most characters of each: they are looked for after each token."""


def completion_requests(request: CompletionRequest, served: ServedModel) -> list[Request]:
    """One request of the engine for each prompt.

    Raises:
        APIError: a value is not allowed, or a prompt is too long; names the parameter.
    """
    prompts = []
    for name, prompt in prompts_of(request.prompt, request.n, served):
        _check_length(len(prompt), request.max_tokens, name, served)
        prompts.append(prompt)
    return _requests(prompts, request, request.max_tokens, request.logprobs, served)


def chat_requests(request: ChatCompletionRequest, served: ServedModel) -> list[Request]:
    """The request of the engine for a conversation; without a limit, the answer may be as long as the context.

    Raises:
        APIError: a value is not allowed, or the conversation is too long; names the parameter.
    """
    if request.top_logprobs and not request.logprobs:
        raise APIError("parameter 'top_logprobs' needs logprobs=true", param="top_logprobs")
    prompt = chat_prompt(request, served)
    limit = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    _check_length(len(prompt), 1 if limit is None else limit, "messages", served)
    room = served.context_length - len(prompt)
    top_logprobs = request.top_logprobs if request.logprobs else None
    return _requests([prompt], request, room if limit is None else limit, top_logprobs, served)


def _requests(
    prompts: list[list[int]],
    request: GenerationRequest,
    max_tokens: int,
    top_logprobs: int | None,
    served: ServedModel,
) -> list[Request]:
    seed, number = (request.seed, None) if request.seed is not None else (served.seed, served.next_number())
    try:
        config = GenerationConfig(
            max_new_tokens=max_tokens,
            min_new_tokens=request.min_tokens,
            temperature=request.temperature,
            top_k=request.top_k if request.top_k not in (-1, 0) else None,
            top_p=request.top_p if request.top_p != 1 else None,
            min_p=request.min_p or None,
            stop=_stop_strings(request.stop),
            n=request.n,
            seed=seed,
            top_logprobs=top_logprobs or 0,
        )
    except ConfigError as error:
        raise _in_api_names(error) from None
    keys = [i if number is None else f"{number}.{i}" for i in range(len(prompts))]
    return [Request(tuple(prompt), config, key) for prompt, key in zip(prompts, keys, strict=True)]


def _stop_strings(value: Any) -> tuple[str, ...]:
    stop = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stop, list) or not all(isinstance(text, str) for text in stop):
        raise APIError(f"parameter 'stop': found {describe(value)}, wanted text or a list of texts", param="stop")
    if len(stop) > MAX_STOP_STRINGS or any(len(text) > MAX_STOP_LENGTH for text in stop):
        limit = f"at most {MAX_STOP_STRINGS} texts of {MAX_STOP_LENGTH} characters"
        raise APIError(f"parameter 'stop': wanted {limit}", param="stop")
    return tuple(stop)


def _in_api_names(error: ConfigError) -> APIError:
    """The error of a value that `GenerationConfig` refuses; its message begins with the name of the field."""
    message = str(error).replace("max_new_tokens", "max_tokens").replace("min_new_tokens", "min_tokens")
    return APIError(message, param=message.replace("=", " ").split(" ", 1)[0])


def _check_length(n_prompt: int, n_new: int, name: str, served: ServedModel) -> None:
    room = served.context_length - n_prompt
    if room >= n_new:
        return
    raise APIError(
        f"'{name}' has {counted(n_prompt, 'token')}, and with {counted(n_new, 'new one')} that is more than the "
        f"{served.context_length:,} tokens of context that '{served.name}' has; "
        + (f"lower max_tokens to {room:,}" if room > 0 else "shorten it"),
        param="max_tokens" if room > 0 else name.partition("[")[0],
        code="context_length_exceeded",
    )
