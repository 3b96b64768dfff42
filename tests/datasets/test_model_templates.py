"""What is trained of conversations with the chat templates of well-known models, down to the tokens."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from reallm.data.chat.template import Conversation, TrainOn
from reallm.data.messages import read_messages, read_tools
from reallm.data.rows import Row
from reallm.errors import DataError
from reallm_datasets.encoding import Encoder
from tests.helpers.chat_templates import model_tokenizer

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
PLAIN = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "and 6?"},
    {"role": "assistant", "content": "6 then"},
]
THINKING = [
    {"role": "user", "content": "2 + 2?"},
    {"role": "assistant", "content": "<think>\ntwo twos\n</think>\n\n4"},
    {"role": "user", "content": "and 6?"},
    {"role": "assistant", "content": "<think>\nsix\n</think>\n\n6 then"},
]
CALLING = [
    {"role": "user", "content": "2 + 2?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call00001", "function": {"name": "add", "arguments": '{"a": 2, "b": null}'}}],
    },
    {"role": "tool", "content": "4", "tool_call_id": "call00001"},
    {"role": "assistant", "content": "It is 4."},
]


def trained(
    tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], train_on: TrainOn = "assistant", **values: Any
) -> tuple[list[str], tuple[str, ...]]:
    """The text of each run of trained tokens, and the remarks.

    What comes before a run is the prompt for generation, and what comes before the first one has its tokens.
    """
    row = Row("1", "a.jsonl:3", {"messages": messages, **values})
    encoder, tools = Encoder(tokenizer), read_tools(row)
    chat = encoder.chat.conversation(read_messages(row, "messages"), row, tools, train_on=train_on)
    return _runs(tokenizer, encoder, chat), chat.remarks


def _runs(tokenizer: PreTrainedTokenizerFast, encoder: Encoder, chat: Conversation) -> list[str]:
    if not chat.turns:
        return []
    [encoded] = encoder.sequences([chat])
    ids, mask = encoded.ids.tolist(), [False, *encoded.answer_mask.tolist(), False]
    starts = [i for i in range(len(ids)) if mask[i + 1] and not mask[i]]
    ends = [i + 1 for i in range(len(ids)) if mask[i + 1] and not mask[i + 2]]
    for start, (before, _) in zip(starts, chat.turns, strict=True):
        assert tokenizer.decode(ids[:start]) == chat.text[:before]
    first = chat.text[: chat.turns[0][0]]
    assert tokenizer(first, add_special_tokens=False)["input_ids"] == ids[: starts[0]]
    return [str(tokenizer.decode(ids[start:end])) for start, end in zip(starts, ends, strict=True)]


def prompt(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]]) -> str:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("qwen3", ["4<|im_end|>", "<think>\n\n</think>\n\n6 then<|im_end|>"]),
        ("glm4", ["\n4<|user|>", "\n6 then<|user|>"]),
        ("llama3", ["4<|eot_id|>", "6 then<|eot_id|>"]),
        ("mistral", ["4</s>", "6 then</s>"]),
        ("gemma", ["4<end_of_turn>", "6 then<end_of_turn>"]),
        ("smollm2", ["4<|im_end|>", "6 then<|im_end|>"]),
        ("deepseek-r1", ["4<|end|>", "6 then<|end|>"]),
        ("marked", ["4<|im_end|>", "6 then<|im_end|>"]),
    ],
)
def test_all_turns_of_a_plain_conversation_are_trained(model: str, expected: list[str]) -> None:
    tokenizer = model_tokenizer(model)
    assert trained(tokenizer, PLAIN) == (expected, ())
    assert trained(tokenizer, PLAIN, "last") == (expected[1:], ())
    row = Row("1", "here", {"messages": PLAIN})
    chat = Encoder(tokenizer).chat.conversation(read_messages(row, "messages"), row)
    for i, (start, _) in zip((1, 3), chat.turns, strict=True):
        assert chat.text[:start] == prompt(tokenizer, PLAIN[:i])


@pytest.mark.parametrize("model", ["qwen3", "glm4", "llama3", "gemma", "smollm2", "marked"])
def test_everything_is_trained_with_the_tokens_that_generation_would_have(model: str) -> None:
    tokenizer = model_tokenizer(model)
    row = Row("1", "here", {"messages": PLAIN})
    encoder = Encoder(tokenizer)
    chat = encoder.chat.conversation(read_messages(row, "messages"), row, train_on="all")
    [encoded] = encoder.sequences([chat])
    assert encoded.answer_mask.all()
    assert tokenizer.decode(encoded.ids) == chat.text
    assert chat.text.endswith(trained(tokenizer, PLAIN)[0][-1])
    before = tokenizer(prompt(tokenizer, PLAIN[:1]), add_special_tokens=False)["input_ids"]
    assert encoded.ids[: len(before)].tolist() == before


def test_reasoning_that_a_template_leaves_out_of_earlier_turns_is_not_unlearned() -> None:
    remark = "with a turn that cannot be trained: the chat template leaves out a part of it, such as its reasoning"
    last = ["<think>\nsix\n</think>\n\n6 then<|im_end|>"]
    assert trained(model_tokenizer("qwen3"), THINKING) == (last, (remark,))
    split = [
        {"role": m["role"], "content": m["content"].split("\n\n")[-1], "reasoning_content": thought}
        for m, thought in zip(THINKING, (None, "two twos", None, "six"), strict=True)
    ]
    assert trained(model_tokenizer("qwen3"), split) == (last, (remark,))
    assert trained(model_tokenizer("qwen3"), THINKING[:2])[0] == ["<think>\ntwo twos\n</think>\n\n4<|im_end|>"]
    assert trained(model_tokenizer("smollm2"), THINKING)[0] == [
        "<think>\ntwo twos\n</think>\n\n4<|im_end|>",
        "<think>\nsix\n</think>\n\n6 then<|im_end|>",
    ]


def test_reasoning_is_kept_within_a_loop_of_tool_calls() -> None:
    messages = [CALLING[0], {**CALLING[1], "reasoning_content": "let me add"}, *CALLING[2:]]
    found, remarks = trained(model_tokenizer("qwen3"), messages)
    assert found[0].startswith("<think>\nlet me add\n</think>\n\n<tool_call>")
    assert remarks == ()


def test_a_template_that_drops_all_reasoning_trains_no_turn_that_has_some() -> None:
    found, remarks = trained(model_tokenizer("deepseek-r1"), THINKING)
    assert found == []
    assert remarks == (
        "dropped: no turn can be trained: the chat template leaves out a part of it, such as its reasoning",
    )


def test_a_prompt_that_only_generation_has_cannot_be_trained() -> None:
    assert trained(model_tokenizer("deepseek-r1-thinking"), PLAIN) == (
        [],
        ("dropped: no turn can be trained: in generation its prompt would be different",),
    )


def test_tools_that_move_to_the_last_question_leave_only_what_follows_it_to_train() -> None:
    found, remarks = trained(model_tokenizer("mistral"), PLAIN, tools=[TOOL])
    assert found == ["6 then</s>"]
    assert remarks == ("with a turn that cannot be trained: in generation its prompt would be different",)


@pytest.mark.parametrize(
    ("model", "call"),
    [
        (
            "qwen3",
            '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": null}}\n</tool_call><|im_end|>',
        ),
        (
            "glm4",
            "\n<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>2</arg_value>\n"
            "<arg_key>b</arg_key>\n<arg_value>null</arg_value>\n</tool_call><|observation|>",
        ),
        ("llama3", '{"name": "add", "parameters": {"a": 2, "b": null}}<|eot_id|>'),
        ("mistral", '[TOOL_CALLS][{"name": "add", "arguments": {"a": 2, "b": null}, "id": "call00001"}]</s>'),
        ("deepseek-r1", '<|call|>add\n```json\n{"a": 2, "b": null}\n```<|end|>'),
    ],
)
@pytest.mark.parametrize("as_text", [True, False])
@pytest.mark.parametrize("content", [None, "", []])
def test_calls_are_written_as_each_template_wants_them(model: str, call: str, as_text: bool, content: Any) -> None:
    arguments: Any = '{"a": 2, "b": null}' if as_text else {"a": 2, "b": None}
    message = {**CALLING[1], "tool_calls": [{"id": "call00001", "name": "add", "arguments": arguments}]}
    message["content"] = content
    if content is None and as_text:
        del message["content"]
    found, remarks = trained(model_tokenizer(model), [CALLING[0], message, *CALLING[2:]], tools=[TOOL])
    assert found[0] == call
    assert len(found) == 2
    assert "It is 4." in found[1]
    assert not [remark for remark in remarks if "tools" not in remark]


def test_a_row_that_ends_with_a_call_ends_with_the_marker_of_its_result() -> None:
    assert trained(model_tokenizer("glm4"), CALLING[:2])[0][0].endswith("</tool_call><|observation|>")


def test_a_call_that_the_template_would_not_write_is_an_error() -> None:
    with pytest.raises(DataError, match=r"^a.jsonl:3: it has tool calls, which the chat template does not write; "):
        trained(model_tokenizer("smollm2"), CALLING)
    both = [CALLING[0], {**CALLING[1], "content": "Let me see."}]
    with pytest.raises(DataError, match=r"^a.jsonl:3: messages\[1\]: the chat template leaves out the call of 'add'"):
        trained(model_tokenizer("deepseek-r1"), both)


def test_tools_are_shown_to_the_model_or_it_is_said_that_they_are_not() -> None:
    row = Row("1", "here", {"messages": PLAIN, "tools": [TOOL]})
    for model in ("qwen3", "llama3", "mistral", "glm4"):
        chat = Encoder(model_tokenizer(model)).chat.conversation(read_messages(row, "messages"), row, read_tools(row))
        assert '"add"' in chat.text
        assert not [remark for remark in chat.remarks if "ignores" in remark]
    remark = "with tools, which the chat template ignores"
    assert trained(model_tokenizer("smollm2"), PLAIN, tools=[TOOL])[1] == (remark,)


def test_turns_can_be_switched_off() -> None:
    off = [PLAIN[0], {**PLAIN[1], "weight": 0}, PLAIN[2], {**PLAIN[3], "weight": 1}]
    for model in ("qwen3", "llama3", "marked"):
        whole = trained(model_tokenizer(model), PLAIN)[0]
        assert trained(model_tokenizer(model), off)[0] == whole[1:]
    last_off = [*PLAIN[:3], {**PLAIN[3], "train": False}]
    assert trained(model_tokenizer("llama3"), last_off)[0] == ["4<|eot_id|>"]
    assert trained(model_tokenizer("llama3"), last_off, "last")[0] == ["4<|eot_id|>"]
    assert trained(model_tokenizer("qwen3"), last_off)[0] == ["<think>\n\n</think>\n\n4<|im_end|>"]
    none = [PLAIN[0], {**PLAIN[1], "trainable": False}]
    assert trained(model_tokenizer("llama3"), none) == ([], ("dropped: no turn is to be trained",))


@pytest.mark.parametrize("model", ["llama3", "marked"])
def test_what_is_switched_off_is_left_out_of_everything(model: str) -> None:
    tokenizer = model_tokenizer(model)
    encoder, row = Encoder(tokenizer), Row("1", "here", {"messages": [PLAIN[0], {**PLAIN[1], "loss": 0}, *PLAIN[2:]]})
    chat = encoder.chat.conversation(read_messages(row, "messages"), row, train_on="all")
    [encoded] = encoder.sequences([chat])
    off, last = trained(tokenizer, PLAIN)[0]
    before, _, after = chat.text.partition(off)
    assert tokenizer.decode(encoded.ids[~encoded.answer_mask]) == off
    assert tokenizer.decode(encoded.ids[encoded.answer_mask]) == before + after
    assert after.endswith(last)
