"""Encodes prompts alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from reallm.data.messages import Message, Tool, read_messages, read_tools
from reallm.data.rows import Row
from reallm.data.tokenization.encoder import EncodedRow
from reallm_datasets.columns import encode_columns
from reallm_datasets.config import Overlong
from reallm_datasets.encoding import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


ANSWERS = ("answer", "completion", "output")
"""Keys of the answer, in formats that have it beside the prompt."""


class _Prompt(NamedTuple):
    """A prompt as text; the messages that it was rendered from, if it is a conversation; and remarks about it."""

    text: str
    messages: list[Message] | None = None
    remarks: tuple[str, ...] = ()


class PromptEncoder:
    """Fields `prompt_ids` int32 [L], and `columns` uint8 [M], the row's other columns; see `encode_columns`.

    Args:
        tokenizer: the model's tokenizer.
        max_prompt_len: longest prompt in tokens.
        overlong: what to do with longer ones: "drop", or "truncate", which keeps their end.
        tools: tools of conversations that have none of their own.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, max_prompt_len: int, overlong: Overlong, tools: Sequence[Tool]
    ) -> None:
        self._encoder = Encoder(tokenizer)
        self._bos = tokenizer.bos_token_id
        self._max_prompt_len = max_prompt_len
        self._overlong = overlong
        self._tools = tools

    def encode(self, rows: Sequence[Row]) -> list[EncodedRow]:
        """See `reallm.data.tokenization.encoder.RowEncoder`."""
        prompts = [self._prompt(row) for row in rows]
        are_rendered = [prompt.messages is not None for prompt in prompts]
        of_end = self._overlong == "truncate"
        texts = [prompt.text for prompt in prompts]
        tokens = self._encoder.prompts(texts, are_rendered, at_most=self._max_prompt_len, of_end=of_end)
        return [self._encoded(*one) for one in zip(tokens, prompts, rows, strict=True)]

    def _encoded(self, ids: np.ndarray, prompt: _Prompt, row: Row) -> EncodedRow:
        remarks = prompt.remarks
        if not len(ids):
            return EncodedRow(None, ("dropped: the prompt is empty",))
        if len(ids) > self._max_prompt_len:
            if self._overlong == "drop":
                return EncodedRow(None, (f"dropped: longer than {self._max_prompt_len} tokens",))
            ids = _end(ids, self._max_prompt_len, self._bos)
            remarks += (f"cut to {self._max_prompt_len} tokens",)
        columns, about_columns = encode_columns(row, prompt.messages)
        return EncodedRow({"prompt_ids": ids, "columns": columns}, (*remarks, *about_columns))

    def _prompt(self, row: Row) -> _Prompt:
        # rows in the format of Alpaca have a prompt for tokenizers without a chat template
        if "messages" in row and (self._encoder.has_chat or "prompt" not in row):
            messages, tools, chat = _without_answer(row), read_tools(row, self._tools), self._encoder.chat
            return _Prompt(chat.prompt(messages, row, tools), messages, chat.remarks(messages, tools))
        row.need_one_of("messages", "prompt")
        return _Prompt(row.text("prompt"))


def _without_answer(row: Row) -> list[Message]:
    """The messages of a row, without those of its answer if the row has it beside the prompt, as `answer`."""
    messages = read_messages(row, "messages")
    answer = next((row.original[key] for key in ANSWERS if row.original.get(key) is not None), None)
    if answer is None or row.original.get("messages") is not None or messages[-1]["role"] != "assistant":
        return messages
    return messages[: -len(answer) if isinstance(answer, list) else -1]


def _end(prompt: np.ndarray, length: int, bos: int | None) -> np.ndarray:
    """The last `length` tokens, of which the first is the beginning-of-sequence token if it was before."""
    end = prompt[-length:].copy()
    if prompt[0] == bos:
        end[0] = bos
    return end
