"""Turns conversations into text with a tokenizer's chat template, and finds the turns to train in it.

    user: hi  ->  <|user|>hi<|end|><|assistant|>Hello!<|end|>
    assistant: Hello!                           ^^^^^^^^^^^^^ the turn: what the model is to write after its prompt

A template is a program, so a turn is found by running it: the whole conversation is rendered once, and a turn starts
after the text that the template renders for the messages before it, as a prompt for generation. If that text is not
the beginning of the whole, or if the whole has less of the turn than the model is to write, training on it would not
be what happens in generation, and the turn is not trained. Many templates leave out reasoning that way as soon as
another turn follows. If the template marks the turns itself (`{% generation %}`), its marks are used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

from reallm.data.chat.renderer import CALL, EDGE, QUESTION, Renderer
from reallm.data.chat.turns import find_turn, is_complete
from reallm.data.messages import Message, Tool
from reallm.data.rows import Row
from reallm.errors import DataError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Span = tuple[int, int]
TrainOn = Literal["assistant", "last", "all"]
"""What of a conversation is trained: all turns of the assistant, the last of them, or the whole text."""

TOKEN = re.compile(r"<\|[^|<>\s]+\|>")
"""What looks like a special token; some tokenizers have such tokens as ordinary ones."""

OTHER_PROMPT = "in generation its prompt would be different"
NO_PROMPT = "it is the first message, so that nothing prompts it"
INCOMPLETE = "the chat template leaves out a part of it, such as its reasoning"


@dataclass(frozen=True)
class Conversation:
    """A conversation as text, and the character spans (start, end) that are trained, in order.

    The span of a turn includes the token that ends it. A span starts where the model starts to write, or where other
    trained text does. The text ends with the last span.
    """

    text: str
    turns: tuple[Span, ...]
    remarks: tuple[str, ...] = ()
    """Phrases for a dataset's report: what the template ignores, and which turns are not trained."""


class _Talk(NamedTuple):
    """What is rendered: messages, the tools that they may call, and the row that they come from, for errors."""

    messages: Sequence[Message]
    tools: Sequence[Tool]
    row: Row

    def before(self, i: int) -> _Talk:
        """The messages before the i-th."""
        return self._replace(messages=self.messages[:i])


class ChatTemplate:
    """The chat template of a tokenizer, or its templates, if it has another one for conversations with tools.

    Raises:
        DataError: the tokenizer has no chat template, or several and no default.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise DataError(
                "the tokenizer has no chat template, which rows with 'messages' need; give one "
                "(dataset.chat_template=chatml), or use rows with 'prompt' and 'answer'"
            )
        if isinstance(tokenizer.chat_template, dict) and "default" not in tokenizer.chat_template:
            names = ", ".join(sorted(tokenizer.chat_template))
            raise DataError(
                f"the tokenizer has several chat templates ({names}) and no default; choose with dataset.chat_template"
            )
        self._tokenizer = tokenizer
        templates = tokenizer.get_chat_template(), tokenizer.get_chat_template(tools=[{}])
        renderers = {text: Renderer(text, tokenizer.special_tokens_map) for text in templates}  # mostly one
        self._without_tools, self._with_tools = (renderers[text] for text in templates)
        added = tokenizer.added_tokens_decoder.values()
        special = {str(token) for token in added if token.special or TOKEN.fullmatch(str(token))}
        special.update(tokenizer.all_special_tokens)
        any_special = "|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)) or r"(?!)"
        self._ends_turn = re.compile(rf"(?:{any_special})(?=\s*\Z)")
        self._follows_turn = re.compile(rf"\s*(?:{any_special})")

    def prompt(self, messages: Sequence[Message], row: Row, tools: Sequence[Tool] = ()) -> str:
        """The text that prompts the assistant's answer.

        Raises:
            DataError: the last message is the assistant's, or the template refuses the messages; names the row.
        """
        if messages[-1]["role"] == "assistant":
            raise row.error("the last message is the assistant's, wanted one to be answered; leave it out")
        return self._render(_Talk(messages, tools, row), prompt=True)

    def conversation(
        self, messages: Sequence[Message], row: Row, tools: Sequence[Tool] = (), *, train_on: TrainOn = "assistant"
    ) -> Conversation:
        """The text of a conversation, and the spans of it that are trained.

        Unless the whole text is trained, it ends with the last trained turn. A turn includes the special token that
        ends it, but no whitespace after that. If a template ends turns without a token of their own, the special token
        with which the next message begins ends them; and if there is none, the end-of-sequence token is added to the
        last one.

        Returns:
            The conversation. Its text is empty if no turn can be trained; the first remark then says why.

        Raises:
            DataError: the conversation has no turn of the assistant, or the template refuses it or leaves tool calls
                out; names the row.
        """
        talk = _Talk(messages, tools, row)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        chosen = [i for i in turns if messages[i].get("train", True)]
        remarks = self.remarks(messages, tools)
        if train_on == "all":
            text, spans = self._everything(talk, chosen)
            return Conversation(text, tuple(spans), remarks)
        if not turns:
            raise row.error("no message is the assistant's, so there is nothing to train")
        chosen = chosen[-1:] if train_on == "last" else chosen
        if not chosen:
            return Conversation("", (), ("dropped: no turn is to be trained",))
        talk = talk.before(chosen[-1] + 1)  # later messages are not trained
        text, spans, problems = self._turns(talk, chosen)
        if not spans:
            return Conversation("", (), (f"dropped: no turn can be trained: {problems[0]}",))
        text, spans = self._with_end_tokens(text, spans, talk)
        problems = [f"with a turn that cannot be trained: {problem}" for problem in problems]
        return Conversation(text, tuple(spans), (*remarks, *problems))

    def remarks(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> tuple[str, ...]:
        """Phrases for a dataset's report about what of the messages the template ignores."""
        renderer = self._renderer(tools)
        keys = dict.fromkeys(key for message in messages for key in renderer.ignored_keys(message))
        ignored = ["tools"] if tools and not renderer.shows_tools else []
        ignored += [f"the message key '{key}'" for key in keys]
        return tuple(f"with {what}, which the chat template ignores" for what in ignored)

    @cached_property
    def end_tokens(self) -> tuple[str, ...]:
        """The special tokens that end a turn: one, or one for each kind of message that may come next."""
        answers: list[Message] = [{"role": "assistant", "content": "answer"}]
        answers += [CALL] if self._without_tools.shows_calls else []
        found = []
        for answer in answers:
            talk = _Talk([QUESTION, answer], (), Row("", "", {}))
            try:
                text = self._render(talk)
            except DataError:
                continue
            token = self._ends_turn.search(text)
            marker = token[0] if token else self._next_marker(text, talk)
            found += [marker.strip()] if marker else []
        return tuple(dict.fromkeys(found))

    def _everything(self, talk: _Talk, chosen: Sequence[int]) -> tuple[str, list[Span]]:
        """The text, and all of it as spans, without turns that are switched off."""
        text = self._render(talk)
        off = [i for i, message in enumerate(talk.messages) if not message.get("train", True)]
        not_turns = [i for i in off if talk.messages[i]["role"] != "assistant"]
        if not_turns:
            raise talk.row.error(
                f"messages[{not_turns[0]}] is switched off, but of a text that is trained whole (dataset.train_on=all) "
                "only turns of the assistant can be left out"
            )
        _, skipped, problems = self._turns(talk, off) if off else ("", [], [])
        if problems:
            raise talk.row.error(f"a turn that is switched off cannot be found in the text: {problems[0]}")
        # tokens are split where the model starts to write, as in generation
        is_marked = self._renderer(talk.tools).marks_turns
        _, turns, _ = ("", [], []) if is_marked else self._turns(talk, [i for i in chosen if i > 0])
        if talk.messages[-1]["role"] == "assistant":
            text, _ = self._with_end_tokens(text, [(0, len(text))], talk)
        edges = sorted({0, len(text), *(start for start, _ in turns), *(edge for span in skipped for edge in span)})
        return text, [span for span in pairwise(edges) if span not in skipped]

    def _turns(self, talk: _Talk, chosen: Sequence[int]) -> tuple[str, list[Span], list[str]]:
        """The text, the spans of the chosen turns that can be trained, and why others cannot."""
        renderer = self._renderer(talk.tools)
        if renderer.marks_turns:
            text, spans = self._marked_turns(talk, chosen)
            return text, spans, []
        text = self._render(talk)
        spans, problems = [], []
        for i in chosen:
            if i == 0:
                problems.append(NO_PROMPT)
                continue
            message = talk.messages[i]
            before = self._render(talk.before(i), prompt=True)
            after = text if i == len(talk.messages) - 1 else self._render(talk.before(i + 1))
            turn = find_turn(text, before, after)
            if turn is None:
                problems.append(OTHER_PROMPT)
            elif not is_complete(turn, text, renderer.shown(message)):
                problems.append(INCOMPLETE)
            elif missing := [name for name in _called(message) if name not in text[turn.start : turn.end]]:
                raise talk.row.error(
                    f"messages[{i}]: the chat template leaves out the call of '{missing[0]}', perhaps because the "
                    "message has a content too"
                )
            else:
                spans.append((turn.start, turn.end))
        return text, spans, list(dict.fromkeys(problems))

    def _marked_turns(self, talk: _Talk, chosen: Sequence[int]) -> tuple[str, list[Span]]:
        parts = self._render(talk, marked=True).split(EDGE)
        if len(parts) == 1:
            raise talk.row.error(
                "the chat template marks no part of it with {% generation %}, so there is nothing to train"
            )
        edges = [0, *accumulate(map(len, parts))]
        spans = list(zip(edges[1::2], edges[2::2], strict=False))
        turns = [i for i, message in enumerate(talk.messages) if message["role"] == "assistant"]
        if len(chosen) < len(turns):
            if len(spans) != len(turns):
                raise talk.row.error(
                    f"the chat template marks {len(spans)} parts of it with {{% generation %}}, but it has "
                    f"{len(turns)} turns of the assistant, so that they cannot be trained one by one"
                )
            spans = [span for i, span in zip(turns, spans, strict=True) if i in chosen]
        return "".join(parts), spans

    def _with_end_tokens(self, text: str, spans: list[Span], talk: _Talk) -> tuple[str, list[Span]]:
        """Extend or cut the spans, and the text after the last one, so that each ends with the token that ends it."""
        may_follow = None
        if self._renderer(talk.tools).marks_turns:  # a token that marks leave out, they leave out at the last turn too
            after_last = self._follows_turn.match(text, spans[-1][1])
            may_follow = {after_last[0]} if after_last else set()
        closed = []
        for start, end in spans:
            token, follows = self._ends_turn.search(text[start:end]), self._follows_turn.match(text, end)
            if token:
                end = start + token.end()
            elif follows and (may_follow is None or follows[0] in may_follow):
                end = follows.end()
            closed.append((start, end))
        start, end = closed[-1]
        text = text[:end]
        if not self._ends_turn.search(text[start:]):
            text += self._next_marker(text, talk) or self._eos
        return text, [*closed[:-1], (start, len(text))]

    def _next_marker(self, text: str, talk: _Talk) -> str | None:
        """The special token with which the next message would begin; None if there is none, or turns are marked."""
        if self._renderer(talk.tools).marks_turns:
            return None
        role = "tool" if "tool_calls" in talk.messages[-1] else "user"
        try:
            longer = self._render(talk._replace(messages=[*talk.messages, {"role": role, "content": "x"}]))
            before = self._render(talk.before(len(talk.messages) - 1), prompt=True)
        except DataError:
            return None
        turn = find_turn(longer, before, text)
        follows = self._follows_turn.match(longer, turn.end) if turn else None
        return follows[0] if follows else None

    @property
    def _eos(self) -> str:
        if self._tokenizer.eos_token is None:
            raise DataError("neither the tokenizer nor its chat template has a token that ends a turn")
        return str(self._tokenizer.eos_token)

    def _renderer(self, tools: Sequence[Tool]) -> Renderer:
        return self._with_tools if tools else self._without_tools

    def _render(self, talk: _Talk, *, prompt: bool = False, marked: bool = False) -> str:
        renderer = self._renderer(talk.tools)
        if not renderer.shows_calls and any(map(_called, talk.messages)):
            raise talk.row.error(
                "it has tool calls, which the chat template does not write; give another one (dataset.chat_template)"
            )
        try:
            return renderer.render(talk.messages, talk.tools, prompt=prompt, marked=marked)
        except Exception as error:  # the template is a program that came with the tokenizer and may raise anything
            raise talk.row.error(f"the chat template refuses it: {one_line(error)}") from error


def _called(message: Message) -> list[str]:
    """The names of the functions that a message calls."""
    return [call["function"]["name"] for call in message.get("tool_calls", ())]
