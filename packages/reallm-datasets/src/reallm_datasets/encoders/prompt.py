"""Encodes prompts alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from reallm.data.messages import Tool, read_messages, read_tools
from reallm.data.rows import Row
from reallm.data.tokenization.encoder import EncodedRow
from reallm_datasets.config import Overlong
from reallm_datasets.encoding import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PromptEncoder:
    """Field `prompt_ids` int32 [L].

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
        texts, remarks = zip(*map(self._text, rows), strict=True) if rows else ((), ())
        prompts = self._encoder.prompts(texts, ["messages" in row for row in rows])
        return [self._encoded(*one) for one in zip(prompts, remarks, strict=True)]

    def _encoded(self, prompt: np.ndarray, remarks: tuple[str, ...]) -> EncodedRow:
        if not len(prompt):
            return EncodedRow(None, ("dropped: the prompt is empty",))
        if len(prompt) <= self._max_prompt_len:
            return EncodedRow({"prompt_ids": prompt}, remarks)
        if self._overlong == "drop":
            return EncodedRow(None, (f"dropped: longer than {self._max_prompt_len} tokens",))
        cut = _end(prompt, self._max_prompt_len, self._bos)
        return EncodedRow({"prompt_ids": cut}, (*remarks, f"cut to {self._max_prompt_len} tokens"))

    def _text(self, row: Row) -> tuple[str, tuple[str, ...]]:
        """The prompt as text, and remarks about it."""
        if "messages" in row:
            messages, tools, chat = read_messages(row, "messages"), read_tools(row, self._tools), self._encoder.chat
            return chat.prompt(messages, row, tools), chat.remarks(messages, tools)
        row.need_one_of("messages", "prompt")
        return row.text("prompt"), ()


def _end(prompt: np.ndarray, length: int, bos: int | None) -> np.ndarray:
    """The last `length` tokens, of which the first is the beginning-of-sequence token if it was before."""
    end = prompt[-length:].copy()
    if prompt[0] == bos:
        end[0] = bos
    return end
