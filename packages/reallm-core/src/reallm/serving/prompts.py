"""Prompts of requests as token ids: texts and ids of `/v1/completions`, conversations of `/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from reallm.data.messages import read_messages, read_tools
from reallm.data.row import Row, describe
from reallm.errors import DataError, counted
from reallm.serving.errors import APIError
from reallm.serving.requests import ChatCompletionRequest
from reallm.serving.served_model import ServedModel

MAX_SAMPLES = 2048
"""Most samples of a request, of all its prompts."""

_WANTED = "text, a list of texts, a list of token ids, or a list of such lists"


def prompts_of(value: Any, n: int, served: ServedModel) -> Iterator[tuple[str, list[int]]]:
    """What errors call it, and the token ids, of each prompt of a request for `n` completions of each.

    Raises:
        APIError: it is no prompt, there are too many, one is empty or is surely longer than the context.
    """
    prompts = [value] if isinstance(value, str) or _is_ids(value) else value
    if not isinstance(prompts, list) or not prompts:
        raise _wrong("prompt", value)
    if len(prompts) * n > MAX_SAMPLES:
        raise APIError(
            f"{counted(len(prompts), 'prompt')} with n={n} are more than {MAX_SAMPLES:,} completions; send several "
            "requests",
            param="prompt",
        )
    for i, prompt in enumerate(prompts):
        name = "prompt" if prompts is not value else f"prompt[{i}]"
        if not (isinstance(prompt, str) or _is_ids(prompt)):
            raise _wrong(name, prompt)
        ids = _encoded(prompt, name, served) if isinstance(prompt, str) else prompt
        if not ids:
            raise APIError(f"parameter '{name}' has no tokens; give at least one", param="prompt")
        unknown = [number for number in ids if not 0 <= number < served.vocab_size]
        if unknown:
            tokens = f"tokens 0 to {served.vocab_size - 1}"
            raise APIError(f"parameter '{name}' has token {unknown[0]}, but the model has {tokens}", param="prompt")
        yield name, ids


def chat_prompt(request: ChatCompletionRequest, served: ServedModel) -> list[int]:
    """The token ids that prompt the assistant's answer, by the chat template as in training.

    Raises:
        APIError: the messages or the tools are wrong, or the model cannot chat.
    """
    template = served.chat_template
    if template is None:
        raise APIError(f"the model '{served.name}' has no chat template; use /v1/completions")
    if request.tool_choice not in ("auto", "none"):
        raise APIError(
            "parameter 'tool_choice': only 'auto' and 'none' are supported; leave it out", param="tool_choice"
        )
    row = Row("", "the request", {"messages": request.messages, "tools": request.tools or None})
    with _naming("tools", row):
        tools = read_tools(row) if request.tool_choice == "auto" else ()
    if tools and template.remarks((), tools):
        raise APIError(f"the chat template of '{served.name}' ignores tools; leave them out", param="tools")
    with _naming("messages", row):
        text = template.prompt(read_messages(row, "messages"), row, tools)
    served.check_text(text, "messages")
    return served.tokenizer.encode(text, add_special_tokens=False)  # the template has written them


@contextmanager
def _naming(param: str, row: Row) -> Iterator[None]:
    """Context whose DataErrors about the row become APIErrors about a parameter."""
    try:
        yield
    except DataError as error:
        raise APIError(str(error).removeprefix(f"{row.place}: "), param=param) from None


def _is_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


def _encoded(text: str, name: str, served: ServedModel) -> list[int]:
    row = Row("", "the request", {})
    with _naming("prompt", row):
        row.valid_text(text, f"parameter '{name}'")
    served.check_text(text, name)
    return served.tokenizer.encode(text)


def _wrong(name: str, value: Any) -> APIError:
    return APIError(f"parameter '{name}': found {describe(value)}, wanted {_WANTED}", param="prompt")
