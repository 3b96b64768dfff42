"""The bodies of requests: the parameters of the OpenAI API that are supported, and vLLM's further ones for sampling.

A parameter that is null counts as left out. One that is not supported is refused unless its value has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from reallm.serving.request_errors import body_error, check_others, parameter_error

MAX_N = 128
"""Most samples of a prompt, as in the API."""
MAX_TOP_LOGPROBS = 20
"""Most alternatives of a token, as in the API for chats."""

_PENALTIES = {"presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "logit_bias": ({},)}


class StreamOptions(BaseModel):
    """Options of an answer that is streamed."""

    model_config = ConfigDict(strict=True)

    include_usage: bool = False
    """Whether the numbers of tokens come as a last chunk."""


class GenerationRequest(BaseModel):
    """The parameters that both kinds of requests have."""

    model_config = ConfigDict(strict=True, extra="allow")

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Parameters of the API that are not supported, with the values that have no effect."""

    model: str | None = None
    n: int = Field(1, ge=1, le=MAX_N)
    max_tokens: int | None = Field(None, ge=0)
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    """-1 or 0: all tokens."""
    min_p: float = 0.0
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Any = None
    """A text or a list of texts."""
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="wrap")
    @classmethod
    def _checked(cls, body: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """The request of a body; an APIError names what is wrong with it."""
        if not isinstance(body, dict):
            raise body_error(body)
        try:
            request = handler({name: value for name, value in body.items() if value is not None})
        except ValidationError as error:
            raise parameter_error(error) from None
        check_others(request.model_extra or {}, list(cls.model_fields), cls.unsupported)
        return request


class CompletionRequest(GenerationRequest):
    """A request for completions of prompts."""

    unsupported = {**_PENALTIES, "suffix": (), "best_of": (1,), "echo": (False,)}

    prompt: Any = Field()
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    max_tokens: int = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    """Number of alternatives of each token; 0: its log-probability alone."""


class ChatCompletionRequest(GenerationRequest):
    """A request for the assistant's answer in a conversation."""

    unsupported = {
        **_PENALTIES,
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
        "parallel_tool_calls": (True,),
        "functions": ([],),
        "function_call": ("none",),
        "audio": (),
        "prediction": (),
        "reasoning_effort": (),
        "verbosity": (),
        "web_search_options": (),
    }

    messages: list[Any]
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_TOP_LOGPROBS)
    tools: list[Any] = Field(default_factory=list)
    tool_choice: Any = "auto"
    """`auto`, or `none`: the model does not get to know the tools."""
