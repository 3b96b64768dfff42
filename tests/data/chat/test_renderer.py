"""What a template wants messages to look like, found out by rendering."""

from __future__ import annotations

import json
from typing import Any

import pytest

from reallm.data.chat.renderer import EDGE, Renderer
from reallm.data.messages import Message

CALLS = "{% for c in m.tool_calls or [] %}CALL{% endfor %}"
ONLY_OBJECT = "{% for k, v in c.function.arguments.items() %}{{ c.function.name + k ~ v }}{% endfor %}"
AS_JSON = "{{ c.function.name }}{{ c.function.arguments | tojson }}"
ONLY_TEXT = "{{ c.function.name + c.function.arguments }}"
PRINTED = "{{ c.function.name }}{{ c.function.arguments }}"


def renderer(message: str) -> Renderer:
    """A template that renders each message `m`."""
    return Renderer("{% for m in messages %}" + message + "{% endfor %}", {"eos_token": "</s>"})


def called(arguments: Any) -> list[Message]:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    return [{"role": "assistant", "tool_calls": [call]}]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (ONLY_OBJECT, "fa1"),
        (AS_JSON, 'f{"a": 1}'),
        (ONLY_TEXT, 'f{"a": 1}'),
        (PRINTED, 'f{"a": 1}'),
        ("{{ c.function.name }}{{ c.function.arguments if c.function.arguments is string else 0 }}", 'f{"a": 1}'),
    ],
)
def test_arguments_are_objects_or_text_as_the_template_wants(template: str, text: str) -> None:
    template = renderer(CALLS.replace("CALL", template))
    for given in ({"a": 1}, json.dumps({"a": 1})):
        assert template.render(called(given)) == text


def test_text_is_kept_as_it_was_given() -> None:
    template = renderer(CALLS.replace("CALL", ONLY_TEXT))
    assert template.render(called('{"b":1,  "a":"é"}')) == 'f{"b":1,  "a":"é"}'
    assert template.render(called({"b": 1, "a": "é"})) == 'f{"b": 1, "a": "é"}'


@pytest.mark.parametrize(
    "condition",
    ["m.content is none", "m.content is not defined", "m.content == ''", "m.content is string", "true"],
)
def test_a_missing_content_is_what_the_template_wants(condition: str) -> None:
    template = renderer("{% if m.tool_calls and " + condition + " %}" + CALLS.replace("CALL", AS_JSON) + "{% endif %}")
    assert template.shows_calls
    assert template.render(called({})) == "f{}"


def test_a_template_without_calls_or_tools_is_recognised() -> None:
    template = renderer("{{ m.role }}: {{ m.content }}")
    assert not template.shows_calls
    assert not template.shows_tools
    assert renderer("{{ tools | tojson if tools }}{{ m.content }}").shows_tools


def test_contents_are_given_in_parts_to_a_template_that_wants_parts() -> None:
    message: Message = {"role": "user", "content": "hi"}
    only_parts = renderer("{% for part in m.content %}{{ part.text if part.type == 'text' }}{% endfor %}")
    assert only_parts.render([message]) == "hi"
    both = renderer("{% if m.content is string %}{{ m.content }}{% else %}{{ m.content | tojson }}{% endif %}")
    assert both.render([message]) == "hi"


def test_the_switch_of_a_message_is_not_for_the_template() -> None:
    assert renderer("{{ m | tojson }}").render([{"role": "user", "content": "a", "train": False}]) == (
        '{"role": "user", "content": "a"}'
    )


def test_marks_are_printed_when_asked_for() -> None:
    template = renderer("{{ m.role }}{%- generation -%} {{ m.content }} {% endgeneration %}!")
    message: Message = {"role": "user", "content": "hi"}
    assert template.marks_turns
    assert template.render([message]) == "userhi !"
    assert template.render([message], marked=True) == f"user{EDGE}hi {EDGE}!"
    assert not renderer("{{ m.content }}").marks_turns


def test_keys_that_a_template_does_not_mention() -> None:
    message: Message = {"role": "user", "content": "a", "name": "n", "mood": 1, "moody": 2, "thinking": "t"}
    template = renderer("{{ m.content }}{{ m.mood }}{{ m['reasoning_content'] }}")
    assert template.ignored_keys(message) == ["moody"]
    assert template.shown(message) == {key: value for key, value in message.items() if key != "moody"}
