"""A conversation as the token ids that a model is given: what it has sampled stays as it was sampled. No torch.

messages    system, user, assistant, user
token ids   [ rendered, encoded | sampled | rendered, encoded ]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from reallm.data.chat.template import ChatTemplate
from reallm.data.messages import Message
from reallm.data.row import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROW = Row("", "the conversation", {})


class _Asked(NamedTuple):
    """A message of the user, and the prompt for its answer."""

    message: Message
    rendered: str
    ids: list[int]


class Conversation:
    """The messages of a user and a model in turn, rendered with the tokenizer's chat template.

    The tokens of an answer are not decoded and encoded again, which may give others, unless the template shows earlier
    answers differently from how they were written, as some do with reasoning. Then the whole is rendered and encoded.

        ids = conversation.ask("Who wrote Faust?")
        completion = ...
        conversation.answer(completion.token_ids, completion.text)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
        self._tokenizer, self._template = tokenizer, template
        self._system: str | None = None
        self._turns: list[Message] = []
        self._asked: _Asked | None = None
        self._text, self._ids = "", list[int]()
        """The last prompt and its answer."""

    @property
    def messages(self) -> list[Message]:
        """The messages so far."""
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return [*system, *self._turns]

    @property
    def system(self) -> str | None:
        """The system message; None: whatever the template writes without one."""
        return self._system

    def set_system(self, text: str) -> None:
        """Set the system message, from the next answer on; the messages so far stay.

        Raises:
            DataError: the chat template refuses it; the system message is as before.
        """
        _ROW.valid_text(text, "the system message")
        self._rendered([{"role": "system", "content": text}, {"role": "user", "content": "question"}])
        self._system = text

    def ask(self, text: str) -> list[int]:
        """The token ids that prompt an answer to a message, which joins the conversation once it is answered.

        Raises:
            DataError: the chat template refuses the message, or it is not valid Unicode.
        """
        asked = {"role": "user", "content": _ROW.valid_text(text, "the message")}
        rendered = self._rendered([*self.messages, asked])
        if self._text and rendered.startswith(self._text):
            ids = self._ids + self._encoded(rendered[len(self._text) :])
        else:
            ids = self._encoded(rendered)
        self._asked = _Asked(asked, rendered, ids)
        return ids

    def answer(self, token_ids: Sequence[int], text: str) -> None:
        """Append the message that was asked last, and its answer, as tokens and as text."""
        assert self._asked is not None, "nothing was asked"
        message, rendered, ids = self._asked
        self._turns += [message, {"role": "assistant", "content": text}]
        written = self._tokenizer.decode(list(token_ids), clean_up_tokenization_spaces=False)
        self._text, self._ids = f"{rendered}{written}", [*ids, *token_ids]
        self._asked = None

    def clear(self) -> None:
        """Forget all messages but the system's."""
        self._turns.clear()
        self._text, self._ids = "", []

    def _rendered(self, messages: Sequence[Message]) -> str:
        return self._template.prompt(messages, _ROW)

    def _encoded(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids
