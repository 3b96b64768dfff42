"""Renders conversations with a tokenizer's chat template, and finds the characters of the assistant's turns.

    user: hi  ->  <|user|>hi<|end|><|assistant|>Hello!<|end|>
    assistant: Hello!                           ^^^^^^^^^^^^^ the turn: what the model is to write after its prompt

A template is a program, so a turn is found by running it: a turn starts after the text that the template renders for
the messages before it, as a prompt for generation, and ends with the text for the messages up to and including it. Both
texts must be prefixes of the whole; then the model sees the same text in training as in generation. If the template
marks the turns itself (`{% generation %}`), its marks are used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from reallm.data.rows import Row
from reallm.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
Span = tuple[int, int]

_MARK = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
_EDGE = "\ufdd0"  # permanently not a character: no text contains it


@dataclass(frozen=True)
class Conversation:
    """A conversation as text, and the character spans (start, end) of the assistant's turns, in order.

    A span includes the token that ends the turn. The text ends with the last span.
    """

    text: str
    turns: tuple[Span, ...]


class ChatTemplate:
    """The chat template of a tokenizer.

    Raises:
        DataError: the tokenizer has no chat template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            raise DataError(
                "the tokenizer has no chat template, which rows with 'messages' need; "
                "use the tokenizer of a chat model, or rows with 'prompt' and 'answer'"
            ) from error
        self._tokenizer = tokenizer
        # transformers maps marks to tokens, and loses some if offsets skip whitespace: make the template print them.
        self._marked_template = _MARK.sub(rf"{{%\1 print '{_EDGE}' \2%}}", template) if _MARK.search(template) else None
        special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
        special.update(tokenizer.all_special_tokens)
        any_special = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)) or r"(?!)"
        self._ends_turn = re.compile(rf"(?:{any_special})(?=\s*\Z)")
        self._closes_turn = re.compile(rf"\s*(?:{any_special})")

    def prompt(self, messages: Sequence[Message], row: Row) -> str:
        """The text that prompts the assistant's answer.

        Raises:
            DataError: the last message is the assistant's, or the template refuses the messages; names the row.
        """
        if messages[-1]["role"] == "assistant":
            raise row.error("the last message is the assistant's, wanted one to be answered")
        return self._render(messages, row, add_generation_prompt=True)

    def conversation(self, messages: Sequence[Message], row: Row, *, only_last: bool = False) -> Conversation:
        """The text of a conversation up to the assistant's last turn, and the spans of its turns (or `only_last`).

        A turn includes the special token that ends it, but no whitespace after that. If the template ends turns without
        a special token, the end-of-sequence token is added to the last one.

        Raises:
            DataError: the conversation has no turn of the assistant or begins with one, the template refuses it, or the
                text of its beginning depends on later messages; names the row.
        """
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        if not turns:
            raise row.error("no message is the assistant's, so there is nothing to train")
        if turns[0] == 0:
            raise row.error("the first message is the assistant's, wanted one of the system or the user before it")
        turns = turns[-1:] if only_last else turns
        messages = messages[: turns[-1] + 1]  # later messages are not trained
        text, spans = (
            self._turns_by_prefix(messages, turns, row)
            if self._marked_template is None
            else self._turns_by_marks(messages, row)
        )
        return self._with_end_tokens(text, spans[-1:] if only_last else spans)

    def _turns_by_prefix(self, messages: Sequence[Message], turns: Sequence[int], row: Row) -> tuple[str, list[Span]]:
        text = self._render(messages, row)
        spans = []
        for i in turns:
            before = self._render(messages[:i], row, add_generation_prompt=True)
            after = text if i == turns[-1] else self._render(messages[: i + 1], row)
            if not (text.startswith(after) and after.startswith(before)):
                raise row.error(
                    f"the chat template writes what comes before the end of messages[{i}] in another way when more "
                    "follows, so the turn cannot be told from its prompt; keep one turn of the assistant in a row, or "
                    "give the template {% generation %} marks"
                )
            spans.append((len(before), len(after)))
        return text, spans

    def _turns_by_marks(self, messages: Sequence[Message], row: Row) -> tuple[str, list[Span]]:
        parts = self._render(messages, row, chat_template=self._marked_template).split(_EDGE)
        if len(parts) == 1:
            raise row.error("the chat template marks nothing of it with {% generation %}, so there is nothing to train")
        edges = [0, *accumulate(map(len, parts))]
        return "".join(parts), list(zip(edges[1::2], edges[2::2], strict=False))

    def _with_end_tokens(self, text: str, spans: list[Span]) -> Conversation:
        """Extend or cut the spans so that each ends with the special token that ends its turn."""
        last = spans[-1][1]
        closing = self._closes_turn.match(text, last)
        if closing:  # a token that the marks leave out at the last turn, they leave out at every turn
            spans = [
                (start, end + len(closing[0]) if text.startswith(closing[0], end) else end) for start, end in spans
            ]
        closed = []
        for start, end in spans:
            token = self._ends_turn.search(text[start:end])
            closed.append((start, start + token.end() if token else end))
        start, end = closed[-1]
        text = text[:end]
        if not self._ends_turn.search(text, start):
            if self._tokenizer.eos_token is None:
                raise DataError("neither the tokenizer nor its chat template has a token that ends a turn")
            text += str(self._tokenizer.eos_token)
        return Conversation(text, (*closed[:-1], (start, len(text))))

    def _render(self, messages: Sequence[Message], row: Row, **options: Any) -> str:
        conversation: Any = list(messages)
        try:
            return str(self._tokenizer.apply_chat_template(conversation, tokenize=False, **options))
        except Exception as error:  # the template is a program that came with the tokenizer and may raise anything
            raise row.error(f"the tokenizer's chat template refuses it: {' '.join(str(error).split())}") from error
