"""Messages and tools in the forms in which people have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reallm.data.messages import load_tools, read_messages, read_tools
from reallm.data.rows import Row
from reallm.errors import DataError

CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "adds"}}


def read(*messages: Any) -> list[dict[str, Any]]:
    return read_messages(Row("1", "here", {"m": list(messages)}), "m")


def asked(**message: Any) -> dict[str, Any]:
    """The message of an assistant in the one form."""
    return read({"role": "assistant", **message})[0]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("hi", "key 'm': found text ('hi'), wanted a list of messages"),
        ([], "key 'm': found an empty list, wanted a list of messages"),
        (["hi"], "key 'm[0]': found text ('hi'), wanted a message with role and content"),
        ([{"content": "hi"}], "key 'm[0].role': found no such key (keys: 'content'), wanted text"),
        ([{"role": "user", "content": [3]}], "key 'm[0].content[0]': found a number (3), wanted text"),
        ([{"role": "user", "content": None}], "key 'm[0].content': found null, wanted text"),
        ([{"role": "assistant", "content": None}], "key 'm[0].content': found null, wanted text"),
        ([{}], "key 'm[0].role': found no such key (it has none), wanted text"),
        ([{"role": "user", "content": "\udc00"}], "key 'm[0].content': found half of a surrogate pair"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {}}]}],
            "key 'm[0].content[1]': found a part of type 'image_url', wanted text; only text is supported",
        ),
    ],
)
def test_messages_that_cannot_be_read(value: Any, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read_messages(Row("1", "here", {"m": value}), "m")
    assert str(caught.value).startswith(f"here: {problem}")


def test_content_in_parts_is_one_text() -> None:
    parts = [{"type": "text", "text": "one "}, {"text": "two"}, " three"]
    assert read({"role": "user", "content": parts}) == [{"role": "user", "content": "one two three"}]


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}, {"content": []}])
@pytest.mark.parametrize(
    "call",
    [
        CALL,
        CALL["function"],
        {"function": CALL["function"], "index": None},
        {"name": "add", "arguments": {"a": 1}, "id": None},
    ],
)
def test_calls_with_and_without_their_wrapper(content: dict[str, Any], call: dict[str, Any]) -> None:
    assert asked(tool_calls=[call], **content) == {"role": "assistant", "tool_calls": [CALL]}


def test_the_id_of_a_call_and_keys_of_a_message_are_kept_unless_they_are_null() -> None:
    call = {"id": "c1", "name": "add", "arguments": {}}
    assert asked(tool_calls=[call])["tool_calls"][0]["id"] == "c1"
    assert asked(content="hi", name="eva", tool_calls=None, refusal=None) == {
        "role": "assistant",
        "content": "hi",
        "name": "eva",
    }


def test_arguments_are_kept_as_they_were_given_and_nulls_in_them_are_values() -> None:
    for given in ('{"a":1,"b":null}', {"a": 1, "b": None}):
        assert asked(tool_calls=[{"name": "f", "arguments": given}])["tool_calls"][0]["function"]["arguments"] == given
    for none in ("", None):
        assert asked(tool_calls=[{"name": "f", "arguments": none}])["tool_calls"][0]["function"]["arguments"] == {}


def test_calls_as_json_text() -> None:
    assert asked(tool_calls=json.dumps([CALL]))["tool_calls"] == [CALL]


@pytest.mark.parametrize(
    ("calls", "problem"),
    [
        (3, "key 'm[0].tool_calls': found a number (3), wanted a list of tool calls"),
        ("[", "key 'm[0].tool_calls': found text that is not JSON (Expecting value at character 2)"),
        ([3], "key 'm[0].tool_calls[0]': found a number (3), wanted a tool call such as"),
        ([{}], "key 'm[0].tool_calls[0].name': found no such key (it has none), wanted text"),
        ([{"function": 3}], "key 'm[0].tool_calls[0].function': found a number (3), wanted an object"),
        (
            [{"function": {"name": "f", "arguments": "{a: 1}"}}],
            "key 'm[0].tool_calls[0].function.arguments': found text that is not JSON (Expecting property name",
        ),
        ([{"name": "f", "arguments": [1]}], "key 'm[0].tool_calls[0].arguments': found a list of 1, wanted an object"),
        (
            [{"name": "f", "arguments": {"a": "\ud83d"}}],
            "key 'm[0].tool_calls[0].arguments': found half of a surrogate",
        ),
    ],
)
def test_calls_that_cannot_be_read(calls: Any, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        asked(tool_calls=calls)
    assert str(caught.value).startswith(f"here: {problem}")


@pytest.mark.parametrize("key", ["weight", "train", "loss", "trainable"])
def test_a_switch_turns_the_training_of_a_turn_off_or_leaves_it_on(key: str) -> None:
    for off in (0, 0.0, False):
        assert asked(content="a", **{key: off}) == {"role": "assistant", "content": "a", "train": False}
    for on in (1, 1.0, True, None):
        assert asked(content="a", **{key: on}) == {"role": "assistant", "content": "a"}
    for wrong in (0.5, 2, "no", "false"):
        with pytest.raises(DataError, match=rf"key 'm\[0\].{key}': found .*, wanted 0 or false, or 1 or true"):
            asked(content="a", **{key: wrong})


def test_switches_of_other_roles_and_switches_that_contradict_each_other() -> None:
    assert read({"role": "user", "content": "a", "train": False})[0]["train"] is False
    with pytest.raises(DataError, match=r"key 'm\[0\].train': only turns of the assistant can be trained one by one"):
        read({"role": "user", "content": "a", "train": True})
    with pytest.raises(DataError, match=r"key 'm\[0\]': 'weight' and 'train' contradict each other"):
        asked(content="a", train=True, weight=0)


@pytest.mark.parametrize(
    "tools", [[TOOL], [TOOL["function"]], json.dumps([TOOL]), [json.dumps(TOOL)], json.dumps([TOOL["function"]])]
)
def test_tools_of_a_row(tools: Any) -> None:
    assert read_tools(Row("1", "here", {"tools": tools})) == [TOOL]


def test_a_row_without_tools_gets_the_default() -> None:
    for values in ({}, {"tools": None}):
        assert read_tools(Row("1", "here", values), [TOOL]) == [TOOL]
    assert read_tools(Row("1", "here", {"tools": []}), [TOOL]) == []


@pytest.mark.parametrize(
    ("tools", "problem"),
    [
        (3, "key 'tools': found a number (3), wanted a list of functions"),
        ("add", "key 'tools': found text that is not JSON (Expecting value at character 1)"),
        ([{"nome": "add"}], "key 'tools[0]': found an object (keys: 'nome'), wanted a function such as"),
    ],
)
def test_tools_that_cannot_be_read(tools: Any, problem: str) -> None:
    with pytest.raises(DataError) as caught:
        read_tools(Row("1", "here", {"tools": tools}))
    assert str(caught.value).startswith(f"here: {problem}")


def test_tools_of_a_file(tmp_path: Path) -> None:
    as_list, as_lines = tmp_path / "tools.json", tmp_path / "tools.jsonl"
    as_list.write_text(json.dumps([TOOL, TOOL["function"]]))
    as_lines.write_text(f"{json.dumps(TOOL)}\n{json.dumps(TOOL['function'])}\n")
    assert load_tools(as_list) == load_tools(str(as_lines)) == [TOOL, TOOL]
    as_lines.write_text(f"{json.dumps(TOOL)}\n3\n")
    with pytest.raises(DataError, match=r"tools.jsonl:2: found a number \(3\), wanted a function such as"):
        load_tools(as_lines)
