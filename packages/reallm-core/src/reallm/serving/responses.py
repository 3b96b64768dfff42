"""The bodies of responses, as the OpenAI API has them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field


def _is_none(value: object) -> bool:
    return value is None


class Usage(BaseModel):
    """Numbers of tokens of a request: of its prompts, and of all samples."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Header(BaseModel):
    """What a response and all chunks of a streamed one begin with."""

    id: str
    object: str
    created: int
    """Seconds since 1970."""
    model: str


class CompletionLogprobs(BaseModel):
    """Log-probabilities in the form of `/v1/completions`; each list has an entry for each token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    """The most likely tokens, and the one that was drawn."""
    text_offset: list[int]
    """Number of characters that begin in the tokens before."""


class CompletionChoice(BaseModel):
    """One sample of a prompt, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None


class CompletionResponse(Header):
    """The response of `/v1/completions`, or a chunk of it."""

    choices: list[CompletionChoice]
    usage: Usage | None = Field(default=None, exclude_if=_is_none)


class TopLogprob(BaseModel):
    """A token, its UTF-8 bytes if they are known, and its log-probability."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """The same of a token that was drawn, and of the most likely ones at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities in the form of `/v1/chat/completions`."""

    content: list[TokenLogprob]
    refusal: None = None


class Message(BaseModel):
    """The assistant's answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer."""

    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatResponse(Header):
    """The response of `/v1/chat/completions`."""

    choices: list[ChatChoice]
    usage: Usage


class Delta(BaseModel):
    """A piece of an answer; the first piece has the role."""

    role: Literal["assistant"] | None = Field(default=None, exclude_if=_is_none)
    content: str | None = Field(default=None, exclude_if=_is_none)


class ChatChunkChoice(BaseModel):
    """A piece of one answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatChunk(Header):
    """A chunk of a streamed response of `/v1/chat/completions`."""

    choices: list[ChatChunkChoice]
    usage: Usage | None = Field(default=None, exclude_if=_is_none)


class LoadResponse(BaseModel):
    """What the engine is busy with."""

    running: int
    """Number of samples that are generated."""
    waiting: int
    """Number of those that wait for room."""
    free_kv_cache_tokens: int
    """Number of tokens that the KV cache has room for besides those of all samples; negative if some wait for it."""


class ModelCard(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "reallm"
    max_model_len: int | None
    """Most tokens of a prompt and its completion together, as vLLM has it; null: any number."""


class ModelList(BaseModel):
    """The response of `/v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
