"""Prompts from files, and their token ids, which are those of training. Imports no torch.

{"prompt": "Once upon a time", "id": 7}                      -> Once upon a time
{"messages": [{"role": "user", "content": "Who am I?"}]}     -> <|im_start|>user\\nWho am I?<|im_end|>\\n...
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from reallm.arguments import as_path
from reallm.data.row import Row, describe
from reallm.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from reallm.data.chat.template import ChatTemplate
    from reallm.data.messages import Message, Tool
    from reallm.data.readers.record import Origin, Records

# What reads files and messages is imported where it is used: most prompts are texts on the command line.


@dataclass(frozen=True)
class Prompt:
    """A text to be continued, or messages to be answered."""

    row: Row
    """The row that it comes from; `index` counts from 0."""
    messages: Sequence[Message] | None = None
    """The messages; None: the text is continued as it is."""
    tools: Sequence[Tool] = ()

    @property
    def text(self) -> str:
        """The text, or that of the last message."""
        return str(self.row.values["prompt"] if self.messages is None else self.messages[-1].get("content", ""))


def as_prompts(texts: Sequence[str], *, chat: bool = False) -> list[Prompt]:
    """The prompts of texts; with `chat` each is a message of the user.

    Raises:
        DataError: a text is empty, or not valid Unicode; names it by its number, from 1.
    """
    rows = [Row(str(i), f"prompt {i + 1}", {"prompt": text}, i) for i, text in enumerate(texts)]
    return [_prompt(row, chat=chat) for row in rows]


def read_prompts(path: str | Path, *, chat: bool = False) -> Generator[Prompt, None, None]:
    """The prompts of a file, read while they are used: the lines of a `.txt`, else rows with `prompt` or `messages`.

    Args:
        path: the lines of a `.txt`, of which blank ones are skipped, or what `reallm.data.rows.iter_rows` takes.
        chat: whether a text is a message of the user, rather than continued as it is.

    Raises:
        DataError: the file cannot be read, has no rows, or has a wrong one; names the location.
    """
    index = -1
    with closing(_records(path)) as found:
        for index, record in enumerate(found):
            if record.error is not None:
                raise record.error
            if not isinstance(record.value, dict):
                raise DataError(f"{record.place}: found {describe(record.value)}, wanted an object with 'prompt'")
            yield _prompt(Row(str(index), record.place, record.value, index), chat=chat)
    if index < 0:
        raise DataError(f"{path}: has no prompts")


class PromptEncoder:
    """Turns prompts into token ids.

    Args:
        tokenizer: the tokenizer, whose chat template writes messages.
        folder: where the tokenizer comes from, for errors.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
        self._tokenizer, self._folder = tokenizer, folder

    def __call__(self, prompt: Prompt) -> list[int]:
        """The token ids of a prompt.

        Raises:
            DataError: there is no chat template, or it refuses the messages; names the row.
        """
        if prompt.messages is None:
            return self._tokenizer.encode(prompt.text)
        if not self._tokenizer.chat_template:
            raise prompt.row.error(
                f"has messages, and the tokenizer in '{self._folder}' has no chat template; give a text 'prompt'"
            )
        text = self._template.prompt(prompt.messages, prompt.row, prompt.tools)
        return self._tokenizer.encode(text, add_special_tokens=False)  # the template has added them

    @cached_property
    def _template(self) -> ChatTemplate:
        from reallm.data.chat.template import ChatTemplate

        return ChatTemplate(self._tokenizer)


def _records(path: str | Path) -> Records:
    from reallm.data.readers.files import check_exists
    from reallm.data.readers.record import Origin
    from reallm.data.readers.text_lines import COMPRESSIONS, check_compression
    from reallm.data.row_sources import records

    if not str(path).lower().endswith((".txt", *(f".txt{compression}" for compression in COMPRESSIONS))):
        return records(path)
    file = as_path(path, DataError)
    check_exists(file)
    origin = Origin(str(path), file.name)
    check_compression(file, origin)
    return _lines(file, origin)


def _lines(file: Path, origin: Origin) -> Records:
    from reallm.data.readers.text_lines import text_lines

    with closing(text_lines(file, origin)) as lines:
        for number, line in lines:
            if line.strip():
                yield origin.at_line(number, {"prompt": line.rstrip("\r\n")})


def _prompt(row: Row, *, chat: bool) -> Prompt:
    row.need_one_of("prompt", "messages")
    if "prompt" in row and "messages" in row:
        raise row.error("has both 'prompt' and 'messages'; leave one of them out")
    if "messages" in row or isinstance(row.values["prompt"], list):
        from reallm.data.messages import read_messages, read_tools

        return Prompt(row, read_messages(row, "messages" if "messages" in row else "prompt"), read_tools(row))
    text = row.text("prompt")
    if not text:
        raise row.error("the prompt is empty")
    return Prompt(row, [{"role": "user", "content": text}] if chat else None)
