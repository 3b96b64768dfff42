"""Renders messages with a chat template, in the form in which this template wants contents and tool calls.

Templates do not agree on that form: some print arguments as JSON, others iterate over them, and others concatenate them
with text; a message that has nothing but tool calls must have an empty content in some, and null in others. No setting
says so, therefore a small conversation is rendered in each form, and the first one that shows the call is taken.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

from reallm.data.messages import REASONING, Message, Tool

_MARK = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}")
EDGE = "\ufdd0"
"""What a template with `{% generation %}` prints at its marks; permanently not a character, so no text contains it."""

_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "train"})


class _Form(NamedTuple):
    """How a template wants tool calls.

    Args:
        as_text: whether arguments are JSON text, rather than objects.
        no_content: content of a message without one: `""`, None, or `...` for no such key.
    """

    as_text: bool
    no_content: Any


QUESTION: Message = {"role": "user", "content": "question"}
CALL: Message = {
    "role": "assistant",
    "tool_calls": [
        {
            "id": "probe0001",
            "type": "function",
            "function": {"name": "probe_name", "arguments": {"probe_key": "probe value"}},
        }
    ],
}
"""Messages that are rendered to find out how a template behaves."""

_TOOL: Tool = {
    "type": "function",
    "function": {"name": "probe_name", "description": "d", "parameters": {"type": "object", "properties": {}}},
}
_WRONG = ("{'probe_key'", '\\"probe_key')
"""What shows that a template was given the wrong form: an object printed by Python, JSON text in quotes."""


class Renderer:
    """A chat template, and the form of messages that it wants.

    Args:
        template: text of the template, in Jinja.
        special_tokens: special tokens by name, which templates print: `{"bos_token": "<s>"}`.
    """

    def __init__(self, template: str, special_tokens: Mapping[str, Any]) -> None:
        self._template = template
        self._special_tokens = dict(special_tokens)
        self._beyond_bounds = ""
        """Why the template is not rendered again: it has once taken too long or made too much text."""
        # transformers maps marks to tokens, and loses some if offsets skip whitespace: make the template print them
        self._marked = _MARK.sub(rf"{{%\1 print '{EDGE}' \2%}}", template)

    @property
    def marks_turns(self) -> bool:
        """Whether the template marks turns with `{% generation %}`."""
        return self._marked != self._template

    @cached_property
    def shows_calls(self) -> bool:
        """Whether the template shows tool calls at all."""
        return self._form is not None

    @cached_property
    def shows_tools(self) -> bool:
        """Whether the template shows the tools that the model may call."""
        try:
            return self.render([QUESTION], [_TOOL], prompt=True) != self.render([QUESTION], prompt=True)
        except Exception:  # a template may raise anything; it will again, when it is given the tools of a row
            return True

    def ignored_keys(self, message: Message) -> list[str]:
        """The keys of a message that the template does not mention."""
        return [
            key
            for key in message
            if key not in _KEYS and not any(map(self._mentions, REASONING if key in REASONING else (key,)))
        ]

    def shown(self, message: Message) -> Message:
        """A message without the keys that the template does not mention."""
        ignored = self.ignored_keys(message)
        return {key: value for key, value in message.items() if key not in ignored}

    def render(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), *, prompt: bool = False, marked: bool = False
    ) -> str:
        """The text of messages; raises whatever the template does.

        Args:
            messages: the messages, in the form of `reallm.data.messages`.
            tools: functions that the model may call.
            prompt: add the prompt for a message of the assistant.
            marked: print `EDGE` at the marks of `{% generation %}`.
        """
        with_calls = any("tool_calls" in message for message in messages)
        form = (self._form if with_calls else None) or _Form(as_text=False, no_content="")
        shown = [_in_form(message, form) for message in messages]
        if self._wants_parts:
            shown = [{**one, "content": [{"type": "text", "text": one.get("content") or ""}]} for one in shown]
        return self._render(shown, tools, prompt=prompt, marked=marked)

    def _render(self, messages: list[Message], tools: Sequence[Tool], *, prompt: bool, marked: bool) -> str:
        # `tokenizer.apply_chat_template` does the same, but drops keys that are null, which some templates need
        from reallm.data.chat.bounded_jinja import BoundsError, render

        if self._beyond_bounds:
            raise BoundsError(self._beyond_bounds)
        variables = {
            "messages": messages,
            "tools": list(tools),
            "documents": None,
            "add_generation_prompt": prompt,
            **self._special_tokens,
        }
        try:
            return render(self._marked if marked else self._template, variables)
        except BoundsError as error:
            self._beyond_bounds = str(error)
            raise

    @cached_property
    def _wants_parts(self) -> bool:
        """Whether the template shows a content only if it is a list of parts, as some for images do."""
        parts = [{"type": "text", "text": QUESTION["content"]}]
        return not self._shows(QUESTION["content"]) and self._shows(parts)

    def _shows(self, content: Any) -> bool:
        try:
            text = self._render([{**QUESTION, "content": content}], (), prompt=True, marked=False)
        except Exception:  # as below
            return False
        return QUESTION["content"] in text

    @cached_property
    def _form(self) -> _Form | None:
        """The form in which tool calls are shown; None if there is none."""
        for as_text, no_content in product((False, True), ("", None, ...)):
            form = _Form(as_text, no_content)
            messages = [_in_form(message, form) for message in (QUESTION, CALL)]
            try:
                text = self._render(messages, (_TOOL,), prompt=False, marked=False)
            except Exception:  # the template may raise anything for a form that it does not expect
                continue
            is_shown = text.count("probe_name") > self._n_names_without_call and "probe value" in text
            wrong = (*_WRONG, "None") if no_content is None else _WRONG
            if is_shown and not any(one in text for one in wrong):
                return form
        return None

    @cached_property
    def _n_names_without_call(self) -> int:
        """How often the tools alone show the name of the probe."""
        try:
            return self._render([QUESTION], (_TOOL,), prompt=False, marked=False).count("probe_name")
        except Exception:  # as above
            return 0

    def _mentions(self, key: str) -> bool:
        return re.search(rf"\b{re.escape(key)}\b", self._template) is not None


def _in_form(message: Message, form: _Form) -> Message:
    shown = {key: value for key, value in message.items() if key != "train"}
    if "tool_calls" in message:
        shown["tool_calls"] = [_call_in_form(call, form) for call in message["tool_calls"]]
    if "content" not in message and form.no_content is not ...:
        shown["content"] = form.no_content
    return shown


def _call_in_form(call: Mapping[str, Any], form: _Form) -> dict[str, Any]:
    function = dict(call["function"])
    is_text = isinstance(function["arguments"], str)
    if form.as_text and not is_text:
        function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    elif is_text and not form.as_text:
        function["arguments"] = json.loads(function["arguments"])
    return {**call, "function": function}
