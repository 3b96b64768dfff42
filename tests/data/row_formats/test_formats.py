"""Formats of rows: how each is recognised, what it becomes, and what mistakes in it say, in the words of the file."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from reallm.data.row_formats.formats import FORMATS, KEYS, check_columns
from reallm.data.row_sources import RowSource
from reallm.data.rows import check_rows, iter_rows, read_rows
from reallm.errors import ConfigError, DataError
from reallm.notices import notify_once

USER, BOT = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}


@pytest.fixture(autouse=True)
def _nothing_was_said() -> None:
    notify_once.cache_clear()


def one(values: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What a row becomes, without those of its keys that it had before."""
    return dict(read_rows(RowSource([values], **options))[0].values)


def message(*rows: dict[str, Any], **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(RowSource(list(rows), **options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def turn(sender: str, text: str, **others: Any) -> dict[str, Any]:
    return {"from": sender, "value": text, **others}


EXAMPLES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "messages": ({"messages": [USER, BOT]}, {"messages": [USER, BOT]}),
    "messages as JSON text": ({"messages": json.dumps([USER, BOT])}, {"messages": [USER, BOT]}),
    "messages with from and value": (
        {"messages": [turn("human", "2+2?"), turn("gpt", "4")]},
        {"messages": [USER, BOT]},
    ),
    "messages of senders with other names": (
        {
            "messages": [
                {"role": "Human", "content": "2+2?"},
                {"role": "tool_call", "content": '{"name": "add", "arguments": {"a": 2}}'},
                {"role": "ipython", "content": "4"},
                {"role": "model", "content": "4", "weight": 0},
            ]
        },
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "ipython", "content": "4"},
                {**BOT, "weight": 0},
            ]
        },
    ),
    "older OpenAI": (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": "{}"}},
                {"role": "function", "name": "add", "content": "4"},
            ],
            "functions": [{"name": "add"}],
        },
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{}"}}],
                },
                {"role": "tool", "name": "add", "content": "4"},
            ],
            "tools": [{"type": "function", "function": {"name": "add"}}],
        },
    ),
    "prompt and answer": ({"prompt": "a", "answer": "b", "n": 1}, {"prompt": "a", "answer": "b", "n": 1}),
    "completion": ({"prompt": "a", "completion": "b", "n": 1}, {"prompt": "a", "answer": "b", "n": 1}),
    "bad completion": (
        {"prompt": "a", "completion": "b", "label": False},
        {"prompt": "a", "answer": "b", "label": False},
    ),
    "completion of messages": ({"prompt": [USER], "completion": [BOT]}, {"messages": [USER, BOT]}),
    "completion of both": ({"prompt": "2+2?", "completion": [BOT]}, {"messages": [USER, BOT]}),
    "completion after turns that are not trained": (
        {"prompt": [USER, BOT, USER], "completion": "4"},
        {"messages": [USER, {**BOT, "train": False}, USER, BOT]},
    ),
    "prompt of messages": ({"prompt": [USER]}, {"messages": [USER]}),
    "prompt of messages and answer": ({"prompt": [USER], "answer": "4"}, {"messages": [USER, BOT]}),
    "ShareGPT": (
        {
            "conversations": [
                turn("human", "2+2?"),
                turn("function_call", '{"name": "add", "arguments": {"a": 2}}'),
                turn("observation", "4"),
                turn("gpt", "4", weight=0),
            ],
            "system": "Add.",
            "tools": '[{"name": "add"}]',
        },
        {
            "messages": [
                {"role": "system", "content": "Add."},
                USER,
                {"role": "assistant", "tool_calls": [CALL]},
                {"role": "tool", "content": "4"},
                {**BOT, "weight": 0},
            ],
            "tools": '[{"name": "add"}]',
        },
    ),
    "ShareGPT as text, with empty columns": (
        {"conversations": json.dumps([turn("system", "s"), turn("user", "2+2?")]), "system": "", "tools": " "},
        {"messages": [{"role": "system", "content": "s"}, USER]},
    ),
    "ShareGPT with other names": (
        {"conversations": [turn("Human", "2+2?"), turn("function", "4"), turn("AI", "4")]},
        {"messages": [USER, {"role": "tool", "content": "4"}, BOT]},
    ),
    "ShareGPT with role and content": ({"conversation": [USER, BOT]}, {"messages": [USER, BOT]}),
    "ShareGPT with two answers": (
        {"conversations": [turn("human", "2+2?")], "chosen": turn("gpt", "4"), "rejected": turn("gpt", "5")},
        {"prompt": [USER], "chosen": [BOT], "rejected": [{**BOT, "content": "5"}]},
    ),
    "pairs": ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "c"}),
    "pairs of conversations": (
        {"chosen": [USER, BOT], "rejected": [USER]},
        {"chosen": [USER, BOT], "rejected": [USER]},
    ),
    "pairs of single messages": (
        {"prompt": [USER], "chosen": BOT, "rejected": turn("gpt", "5")},
        {"prompt": [USER], "chosen": [BOT], "rejected": [{**BOT, "content": "5"}]},
    ),
    "pairs whose prompt is in both": (
        {"chosen": "The sum is 12.", "rejected": "The sum is 13."},
        {"prompt": "The sum is", "chosen": " 12.", "rejected": " 13."},
    ),
    "pairs of dialogues": (
        {"chosen": "\n\nHuman: a\n\nAssistant: The b", "rejected": "\n\nHuman: a\n\nAssistant: The c"},
        {"prompt": "\n\nHuman: a\n\nAssistant:", "chosen": " The b", "rejected": " The c"},
    ),
    "pairs of rendered conversations": (
        {"chosen": "<|im_start|>assistant\nthe b", "rejected": "<|im_start|>assistant\nthe c"},
        {"prompt": "<|im_start|>assistant\n", "chosen": "the b", "rejected": "the c"},
    ),
    "pairs with a system text": (
        {"system": "Add.", "prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {
            "system": "Add.",
            "prompt": [{"role": "system", "content": "Add."}, USER],
            "chosen": "4",
            "rejected": "5",
        },
    ),
    "several pairs": (
        {"prompt": "a", "pos_answers": ["b"], "neg_answers": ["c"]},
        {"prompt": "a", "pos_answers": ["b"], "neg_answers": ["c"]},
    ),
    "OpenAI's pairs": (
        {
            "input": {"messages": [USER], "tools": [CALL], "parallel_tool_calls": True},
            "preferred_output": [BOT],
            "non_preferred_output": [USER],
        },
        {"prompt": [USER], "chosen": [BOT], "rejected": [USER], "tools": [CALL]},
    ),
    "text": ({"text": "a", "meta": {"url": None}}, {"text": "a", "meta": {"url": None}}),
    "several forms of our own": (
        {"prompt": "a", "messages": [USER, BOT], "chosen": [BOT], "rejected": [BOT], "score": 1},
        {"prompt": "a", "messages": [USER, BOT], "chosen": [BOT], "rejected": [BOT], "score": 1},
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_form_becomes_what_datasets_read(name: str) -> None:
    row, expected = EXAMPLES[name]
    assert one(row) == expected
    assert one({**row, "id": 7, "unused": None}) == {**expected, "id": 7, "unused": None}


ALPACA = {"instruction": "Add.", "input": "2 and 2", "output": "4"}
BELOW = "Below is an instruction that describes a task"
RESPONSE = "Write a response that appropriately completes the request."


def test_alpaca_is_a_conversation_and_beside_it_the_prompt_for_models_without_a_chat_template() -> None:
    assert one(ALPACA) == {
        "messages": [{"role": "user", "content": "Add.\n\n2 and 2"}, BOT],
        "prompt": f"{BELOW}, paired with an input that provides further context. {RESPONSE}\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n2 and 2\n\n### Response:\n",
        "answer": "4",
    }


@pytest.mark.parametrize(
    "row", [{**ALPACA, "input": ""}, {**ALPACA, "input": None}, {"instruction": "Add.", "output": "4"}]
)
def test_alpaca_without_an_input(row: dict[str, Any]) -> None:
    prompt = f"{BELOW}. {RESPONSE}\n\n### Instruction:\nAdd.\n\n### Response:\n"
    expected = {"messages": [{"role": "user", "content": "Add."}, BOT], "prompt": prompt, "answer": "4"}
    assert one(row) == expected
    assert one(row, format="alpaca_prompt") == {"prompt": prompt, "answer": "4"}


def test_alpaca_with_a_system_text_and_earlier_turns_is_a_conversation_only() -> None:
    row = {**ALPACA, "system": "Brief.", "history": [["1+1?", "2"]]}
    assert one(row) == {
        "messages": [
            {"role": "system", "content": "Brief."},
            {"role": "user", "content": "1+1?"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "Add.\n\n2 and 2"},
            BOT,
        ]
    }
    assert message(row, format="alpaca_prompt") == (
        "rows[0]: key 'system': the Alpaca prompt has no place for it; use dataset.format=alpaca"
    )


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"conversations": [turn("human", "a")]}, "rows: rows look like ShareGPT"),
        (ALPACA, "rows: rows look like Alpaca"),
        ({"prompt": "a", "completion": "b"}, "rows: rows look like prompts and completions"),
        ({"text": "a"}, ""),
        ({"messages": [USER]}, ""),
        ({"prompt": "a", "answer": "b"}, ""),
        ({"chosen": [USER], "rejected": [USER]}, ""),
    ],
)
def test_the_form_is_said_once_unless_it_is_our_own(
    row: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = RowSource([row])
    with caplog.at_level(logging.WARNING, "reallm"):
        check_rows(source)
        read_rows(source)
    assert [record.getMessage() for record in caplog.records] == ([f"note: {said}"] if said else [])


def test_rows_of_a_bare_path_are_as_they_are_there() -> None:
    assert read_rows([ALPACA])[0].values == ALPACA


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_row_keeps_what_it_was(name: str) -> None:
    values = EXAMPLES[name][0]
    assert read_rows(RowSource([values]))[0].original == values
    (row,) = read_rows(RowSource([{"q": "a", "unit": "m"}], columns={"prompt": "q"}))
    assert row.original == {"prompt": "a", "unit": "m"}


def test_a_format_that_is_given_is_used_and_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    row = {"messages": [USER, BOT], "prompt": "a", "answer": "b", "text": "c", "n": 1}
    assert one(row, format="text") == {"text": "c", "n": 1}
    assert one(row, format="prompt_answer") == {"prompt": "a", "answer": "b", "n": 1}
    assert one(row, format="prompt") == {"prompt": "a", "n": 1}
    assert one(row, format="messages") == {"messages": [USER, BOT], "n": 1}
    assert one({**ALPACA, "text": "c"}, format="text") == {**ALPACA, "text": "c"}
    assert not caplog.records
    assert message({"instruction": "a"}, format="sharegpt") == (
        "rows[0]: key 'conversations': found no such key (keys: 'instruction'), wanted a list of messages"
    )


def test_an_unknown_format_and_an_unknown_column() -> None:
    with pytest.raises(ConfigError, match=r"^format=sharegtp is not one of .*; did you mean 'sharegpt'\?$"):
        RowSource("a.jsonl", "sharegtp")
    with pytest.raises(
        ConfigError, match=r"^columns.promt=q: no format of rows has the key 'promt'; did you mean 'prompt'\?$"
    ):
        check_columns({"promt": "q"})
    check_columns(dict.fromkeys(KEYS, "q"))


# --- columns --------------------------------------------------------------------------------------------------------


def test_columns_are_renamed() -> None:
    columns = {"prompt": "question", "answer": "reply", "id": "uuid"}
    rows = read_rows(RowSource([{"question": "a", "reply": "b", "uuid": "u", "prompt": "other"}], columns=columns))
    assert [(row.id, row.values) for row in rows] == [("u", {"prompt": "a", "answer": "b", "id": "u"})]
    assert one({"q": "2+2?", "r": "4"}, columns={"instruction": "q", "output": "r"})["answer"] == "4"
    assert one({"a": "x"}, columns={"prompt": "a", "answer": "a"}) == {"prompt": "x", "answer": "x"}


def test_mistakes_are_named_by_the_columns_of_the_file() -> None:
    columns = {"prompt": "question", "completion": "reply"}
    assert message({"question": "a", "reply": 3}, columns=columns) == (
        "rows[0]: key 'reply': found a number (3), wanted text"
    )
    row = read_rows(RowSource([{"question": "a", "reply": "b"}], columns=columns))[0]
    with pytest.raises(DataError, match=r"key 'reply': found text \('b'\), wanted a list"):
        row.get("answer", list)
    assert message({"question": "a"}, columns={"prompt": "question", "answer": "rely"}, format="prompt_answer") == (
        "rows[0]: key 'rely': found no such key (keys: 'question'), wanted text"
    )


def test_a_column_that_is_not_there() -> None:
    assert message({"question": "a", "n": 1}, columns={"prompt": "questoin"}) == (
        "rows[0]: found no such key 'questoin', which dataset.columns.prompt names; did you mean 'question'?"
    )
    assert message({"question": "a", "n": 1}, columns={"n": "n", "prompt": "p"}) == (
        "rows[0]: found no such key 'p', which dataset.columns.prompt names (keys: 'question', 'n')"
    )


def test_a_column_that_seems_to_be_the_prompt_is_not_searched_for_in_the_answers() -> None:
    row = {"system": "Be kind.", "question": "1+1?", "chosen": "It is 2", "rejected": "It is 3"}
    assert message(row) == (
        "rows[0]: key 'prompt': found no such key (keys: 'system', 'question', 'chosen', 'rejected'); "
        "'question' seems to be it: give dataset.columns.prompt=question"
    )
    user = {"role": "user", "content": "1+1?"}
    assert one(row, columns={"prompt": "question"})["prompt"] == [{"role": "system", "content": "Be kind."}, user]


def test_errors_in_messages_of_sharegpt_name_the_column_of_the_file() -> None:
    assert message({"chat": [turn("human", "a"), {"from": "gpt", "value": 3}]}, columns={"conversations": "chat"}) == (
        "rows[0]: key 'chat[1].value': found a number (3), wanted text"
    )
    row = {"conversations": [turn("human", "a")], "good": turn("gpt", "b"), "bad": {"from": "gpt"}}
    assert message(row, columns={"chosen": "good", "rejected": "bad"}) == (
        "rows[0]: key 'bad.value': found no such key (keys: 'from'), wanted text"
    )


def test_a_column_that_no_row_has_is_said_although_the_rows_are_recognised(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "a", "answer": "b", "uuid": "u"}]
    read_rows(RowSource(rows, columns={"id": "uuid", "text": "body"}))
    assert caplog.messages == ["note: a list of rows: no row has the key 'body', which dataset.columns.text names"]


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"conversations": []}, "key 'conversations': found an empty list, wanted a list of messages"),
        ({"conversations": "hi"}, "key 'conversations': found text ('hi'), wanted a list of messages"),
        ({"conversations": ["hi"]}, "key 'conversations[0]': found text ('hi'), wanted a message with from and value"),
        (
            {"conversations": [{"from": "gpt"}]},
            "key 'conversations[0].value': found no such key (keys: 'from'), wanted text",
        ),
        ({"conversations": [turn("human", 3)]}, "key 'conversations[0].value': found a number (3), wanted text"),
        (
            {"conversations": [turn("narrator", "a")]},
            "key 'conversations[0].from': found text ('narrator'), wanted one of",
        ),
        ({"conversations": [turn("human", "\ud83d")]}, "key 'conversations[0].value': found half of a surrogate pair"),
        (
            {"conversations": [turn("human", "a"), turn("function_call", "add(2)")]},
            "key 'conversations[1].value': found text ('add(2)'), wanted JSON such as",
        ),
        ({**ALPACA, "output": 4}, "key 'output': found a number (4), wanted text"),
        ({**ALPACA, "history": [["a"]]}, "key 'history[0]': found a list of 1, wanted a question and its answer"),
        ({"prompt": [], "completion": "a"}, "key 'prompt': found an empty list, wanted a list of messages"),
        (
            {"chosen": "a b", "rejected": "c d"},
            "key 'prompt': found no such key (keys: 'chosen', 'rejected'), and 'chosen' and 'rejected' share no",
        ),
        ({"chosen": 1, "rejected": 2}, "key 'chosen': found a number (1), wanted text or a list of messages"),
        (
            {"input": {}, "preferred_output": [BOT], "non_preferred_output": [BOT]},
            "key 'input.messages': found null, wanted a list",
        ),
    ],
)
def test_mistakes_name_the_row_and_the_key(row: dict[str, Any], problem: str) -> None:
    assert message(row).startswith(f"rows[0]: {problem}")


def test_a_row_of_another_form_than_the_first_ones() -> None:
    share = {"conversations": [turn("human", "a")]}
    assert message(share, ALPACA, share, {"promt": 1}) == (
        "rows[1]: the row looks like Alpaca, but the first ones look like ShareGPT; keep to one format in a file "
        "(and 1 more row)"
    )
    assert message({"messages": [USER]}, share) == (
        "rows[1]: the row looks like ShareGPT, but the first ones look like messages; keep to one format in a file"
    )
    assert message(ALPACA, {"x": 1}) == (
        "rows[1]: the row has other keys (keys: 'x'), but the first ones look like Alpaca; keep to one format in a file"
    )


def test_own_rows_may_be_of_several_kinds() -> None:
    rows: list[dict[str, Any]] = [{"promt": "a"}, {"prompt": "a", "answer": "b"}, {"messages": [USER, BOT]}]
    assert [row.values for row in read_rows(RowSource(rows))] == rows


def test_each_file_may_have_its_own_form(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(ALPACA))
    (tmp_path / "b.jsonl").write_text(json.dumps({"conversations": [turn("human", "2+2?"), turn("gpt", "4")]}))
    assert [row.values["messages"][-1] for row in iter_rows(RowSource(str(tmp_path)))] == [BOT, BOT]


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        ({"question": "a", "Answer": "b"}, "dataset.columns.prompt=question dataset.columns.answer=Answer"),
        ({"instruction": "a", "response": "b"}, "dataset.columns.prompt=instruction dataset.columns.answer=response"),
        (
            {"query": "a", "chosen_response": "b", "rejected": "c"},
            "dataset.columns.prompt=query dataset.columns.chosen=chosen_response",
        ),
        ({"dialogue": [USER]}, "dataset.columns.messages=dialogue"),
        ({"body": "a"}, "dataset.columns.text=body"),
        ({"x": "a", "y": None}, "dataset.columns.prompt=KEY dataset.columns.answer=KEY"),
    ],
)
def test_rows_of_no_known_form_say_what_was_found_and_what_to_do(row: dict[str, Any], remedy: str) -> None:
    keys = ", ".join(f"'{key}'" for key, value in row.items() if value is not None)
    said = message(row, row)
    assert said.startswith(
        f"rows[0]: cannot recognise the format of rows with the keys {keys}; say which are which ({remedy}"
    )
    assert said.endswith(f", or give dataset.format ({', '.join(FORMATS)})")


def test_rows_without_keys() -> None:
    assert message({}) == "rows[0]: the row is empty"


def test_lines_that_cannot_be_read_come_before_a_form_that_is_not_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('nothing\n{"x": 1}\n{"x": 2}\n')
    with pytest.raises(DataError, match=r"a.jsonl:1: invalid JSON: .* \(and 1 more row\)"):
        read_rows(RowSource(path))
    with pytest.raises(DataError, match=r"a.jsonl:2: cannot recognise the format"):
        check_rows(RowSource(path))
