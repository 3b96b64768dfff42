"""Conversations: which characters are the assistant's, for templates of several kinds."""

from __future__ import annotations

from typing import Any

import pytest

from reallm.data.chat import ChatTemplate
from reallm.data.rows import Row
from reallm.errors import DataError
from tests.helpers.tokenizers import CHATML, tiny_tokenizer

ROW = Row("1", "a.jsonl:3", {})

MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}END{% endgeneration %}{% else %}{{ m.content }}"
    "{% endif %}{{ '\n' }}{% endfor %}"
)
"""Marks the turns itself, and knows no prompt for generation."""

PLAIN = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
"""Has no special token at all."""


def talk(*contents: str, system: str = "") -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def turns(messages: list[dict[str, Any]], template: str | None = CHATML, **options: Any) -> tuple[str, list[str]]:
    """The text of a conversation, and what of it is the assistant's."""
    chat = ChatTemplate(tiny_tokenizer(chat_template=template, **options)).conversation(messages, ROW)
    return chat.text, [chat.text[start:end] for start, end in chat.turns]


def problem(messages: list[dict[str, Any]], template: str | None = CHATML) -> str:
    with pytest.raises(DataError) as caught:
        turns(messages, template)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_turn_of_the_assistant_with_the_token_that_ends_it() -> None:
    text, found = turns(talk("hi", "Hello!", "and?", "Bye ", system="Be brief."))
    assert found == ["Hello!<|im_end|>", "Bye <|im_end|>"]
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nHello!<|im_end|>"
        "\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\nBye <|im_end|>"
    )


def test_what_follows_the_last_turn_is_left_out() -> None:
    assert turns(talk("hi", "Hello!", "bye")) == turns(talk("hi", "Hello!"))


def test_turns_one_after_the_other_and_turns_of_no_text() -> None:
    messages = [*talk("hi", "one"), {"role": "assistant", "content": "two"}, *talk("?", "")]
    assert turns(messages)[1] == ["one<|im_end|>", "two<|im_end|>", "<|im_end|>"]


def test_only_the_last_turn() -> None:
    chat = ChatTemplate(tiny_tokenizer()).conversation(talk("a", "b", "c", "d"), ROW, only_last=True)
    assert [chat.text[start:end] for start, end in chat.turns] == ["d<|im_end|>"]


def test_a_template_that_marks_the_turns_is_taken_at_its_word() -> None:
    text, found = turns(talk("hi", " one two", "?", "three"), MARKED)
    assert found == [" one twoEND", "threeEND<|im_end|>"]
    assert text.endswith("assistant\nthreeEND<|im_end|>")


def test_marks_that_leave_out_the_end_of_the_turn_are_extended_by_it() -> None:
    template = MARKED.replace("END", "").replace("{{ '\n' }}", "{{ '\n<|im_end|>\n' }}")
    assert turns(talk("hi", " one", "?", "two "), template)[1] == [
        " one\n<|im_end|>",
        "two \n<|im_end|>",
    ]


def test_marks_trim_whitespace_around_them_as_the_template_says() -> None:
    template = "{% for m in messages %}  {%- generation -%}\n {{ m.content }} \n{%- endgeneration %}\n| {% endfor %}"
    assert turns(talk("hi", "one"), template) == ("hi| one<|im_end|>", ["hi", "one<|im_end|>"])


def test_marks_of_nothing() -> None:
    template = "{% for m in messages %}{% if false %}{% generation %}{% endgeneration %}{% endif %}x{% endfor %}"
    assert problem(talk("a", "b"), template).startswith("a.jsonl:3: the chat template marks nothing")


def test_a_template_without_special_tokens_gets_the_end_of_sequence_token_after_the_last_turn() -> None:
    template = PLAIN + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    text, found = turns(talk("hi", "one", "?", "two"), template)
    assert found == ["one\n", "two\n<|im_end|>"]
    assert text.endswith("assistant: two\n<|im_end|>")
    tokenizer = tiny_tokenizer(chat_template=template)
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="neither the tokenizer nor its chat template has a token that ends a turn"):
        ChatTemplate(tokenizer).conversation(talk("hi", "one"), ROW)


@pytest.mark.parametrize(
    "template",
    [
        pytest.param("{{ messages | length }}" + CHATML, id="the beginning depends on what follows"),
        pytest.param(
            CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}"), id="the prompt is not the turn's beginning"
        ),
        pytest.param(
            CHATML.replace("message['content']", "(message['content'] if loop.last else '')"), id="turns change later"
        ),
    ],
)
def test_a_template_that_writes_prompts_in_another_way_is_refused(template: str) -> None:
    told = problem(talk("a", "b", "c", "d"), template)
    assert told.startswith(
        "a.jsonl:3: the chat template writes what comes before the end of messages[1] in another way"
    )
    assert "keep one turn of the assistant in a row" in told


def test_a_template_that_changes_earlier_turns_does_for_one_turn() -> None:
    template = CHATML.replace("message['content']", "(message['content'] if loop.last else message['content'][:1])")
    chat = ChatTemplate(tiny_tokenizer(chat_template=template))
    with pytest.raises(DataError):
        chat.conversation(talk("a", "bb", "c", "dd"), ROW)
    last = chat.conversation(talk("a", "bb", "c", "dd"), ROW, only_last=True)
    assert last.text[slice(*last.turns[0])] == "dd<|im_end|>"


def test_what_a_template_raises_names_the_row() -> None:
    template = "{{ raise_exception('roles must\nalternate') }}"
    assert problem(talk("a", "b"), template) == (
        "a.jsonl:3: the tokenizer's chat template refuses it: roles must alternate"
    )


def test_conversations_without_anything_to_train() -> None:
    assert problem(talk("a")) == "a.jsonl:3: no message is the assistant's, so there is nothing to train"
    assert problem([{"role": "assistant", "content": "a"}]).startswith(
        "a.jsonl:3: the first message is the assistant's"
    )


def test_a_tokenizer_without_a_template_says_what_to_do() -> None:
    assert problem(talk("a", "b"), None) == (
        "the tokenizer has no chat template, which rows with 'messages' need; "
        "use the tokenizer of a chat model, or rows with 'prompt' and 'answer'"
    )


def test_a_prompt_ends_where_the_assistant_is_to_write() -> None:
    chat = ChatTemplate(tiny_tokenizer())
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.prompt(talk("hi"), ROW) == text
    with pytest.raises(DataError, match=r"a.jsonl:3: the last message is the assistant's, wanted one to be answered"):
        chat.prompt(talk("hi", "there"), ROW)
