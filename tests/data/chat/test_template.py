"""Conversations: which characters are the assistant's, for templates of several kinds."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from reallm.data.chat.template import ChatTemplate
from reallm.data.rows import Row
from reallm.errors import DataError
from tests.helpers.chat_templates import model_tokenizer
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
    chat = ChatTemplate(tiny_tokenizer()).conversation(talk("a", "b", "c", "d"), ROW, train_on="last")
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
    assert problem(talk("a", "b"), template).startswith("a.jsonl:3: the chat template marks no part of it")


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
            CHATML.replace("message['content']", "(message['content'] if loop.last else '')"),
            id="questions change later",
        ),
    ],
)
def test_no_turn_is_trained_if_its_prompt_in_generation_is_another_text(template: str) -> None:
    chat = ChatTemplate(tiny_tokenizer(chat_template=template)).conversation(talk("a", "b", "c", "d"), ROW)
    assert (chat.text, chat.turns) == ("", ())
    assert chat.remarks == ("dropped: no turn can be trained: in generation its prompt would be different",)


def test_a_turn_that_changes_later_is_not_trained_and_those_after_it_are() -> None:
    later = "(message['content'] if loop.last or message['role'] == 'user' else message['content'][:1])"
    template = CHATML.replace("message['content']", later)
    chat = ChatTemplate(tiny_tokenizer(chat_template=template)).conversation(talk("a", "bb", "c", "dd"), ROW)
    assert [chat.text[start:end] for start, end in chat.turns] == ["dd<|im_end|>"]
    assert chat.remarks == (
        "with a turn that cannot be trained: the chat template leaves out a part of it, such as its reasoning",
    )
    assert chat.text.count("bb") == 0


def test_what_a_template_raises_names_the_row() -> None:
    template = "{{ raise_exception('roles must\nalternate') }}"
    assert problem(talk("a", "b"), template) == ("a.jsonl:3: the chat template refuses it: roles must alternate")


def test_conversations_without_anything_to_train() -> None:
    assert problem(talk("a")) == "a.jsonl:3: no message is the assistant's, so there is nothing to train"


def test_a_turn_before_any_question_is_read_but_not_trained() -> None:
    chat = ChatTemplate(tiny_tokenizer()).conversation(talk("hi", "one", "and?", "two")[1:], ROW)
    assert chat.text.startswith("<|im_start|>assistant\none<|im_end|>")
    assert [chat.text[start:end] for start, end in chat.turns] == ["two<|im_end|>"]
    why = "it is the first message, so that nothing prompts it"
    assert chat.remarks == (f"with a turn that cannot be trained: {why}",)
    alone = ChatTemplate(tiny_tokenizer()).conversation(talk("hi", "one")[1:], ROW)
    assert (alone.text, alone.remarks) == ("", (f"dropped: no turn can be trained: {why}",))


def test_a_tokenizer_without_a_template_says_what_to_do() -> None:
    assert problem(talk("a", "b"), None) == (
        "the tokenizer has no chat template, which rows with 'messages' need; give one "
        "(dataset.chat_template=chatml), or use rows with 'prompt' and 'answer'"
    )


def test_a_prompt_ends_where_the_assistant_is_to_write() -> None:
    chat = ChatTemplate(tiny_tokenizer())
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.prompt(talk("hi"), ROW) == text
    with pytest.raises(DataError, match=r"a.jsonl:3: the last message is the assistant's, wanted one to be answered"):
        chat.prompt(talk("hi", "there"), ROW)


def test_of_several_templates_the_one_for_tools_is_used_with_tools() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": CHATML, "tool_use": "{{ tools | tojson }}" + CHATML}
    chat = ChatTemplate(tokenizer)
    assert chat.prompt(talk("hi"), ROW).startswith("<|im_start|>")
    tool = {"type": "function", "function": {"name": "add"}}
    assert chat.prompt(talk("hi"), ROW, [tool]).startswith('[{"type": "function"')
    tokenizer.chat_template = {"a": CHATML, "b": CHATML}
    with pytest.raises(DataError, match=r"several chat templates \(a, b\) and no default; choose with dataset"):
        ChatTemplate(tokenizer)


def test_a_key_that_the_template_does_not_mention_is_told() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "a", "name": "eva", "mood": "good"},
        {"role": "assistant", "content": "b", "reasoning_content": "thought", "train": True},
    ]
    chat = ChatTemplate(tiny_tokenizer())
    assert chat.conversation(messages, ROW).remarks == (
        "with the message key 'mood', which the chat template ignores",
        "with the message key 'reasoning_content', which the chat template ignores",
    )
    shown = "(message.thinking or '') + message['content'] + (message.mood or '')"
    chat = ChatTemplate(tiny_tokenizer(chat_template=CHATML.replace("message['content']", shown)))
    assert chat.conversation(messages, ROW).remarks == ()


def test_tokens_that_end_a_turn() -> None:
    assert ChatTemplate(tiny_tokenizer()).end_tokens == ("<|im_end|>",)
    assert ChatTemplate(model_tokenizer("glm4")).end_tokens == ("<|user|>", "<|observation|>")
    assert ChatTemplate(model_tokenizer("marked")).end_tokens == ("<|im_end|>",)
    assert ChatTemplate(tiny_tokenizer(chat_template=PLAIN)).end_tokens == ()


def test_templates_and_what_was_found_out_about_them_can_be_pickled() -> None:
    chat = ChatTemplate(model_tokenizer("deepseek-r1"))
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    messages: list[dict[str, Any]] = [*talk("a"), {"role": "assistant", "tool_calls": [call]}]
    found = chat.conversation(messages, ROW)
    assert pickle.loads(pickle.dumps(chat)).conversation(messages, ROW) == found


def test_of_everything_only_turns_of_the_assistant_can_be_switched_off() -> None:
    messages = [{**talk("hi")[0], "train": False}, {"role": "assistant", "content": "Hello!"}]
    chat = ChatTemplate(tiny_tokenizer())
    assert len(chat.conversation(messages, ROW).turns) == 1
    with pytest.raises(DataError, match=r"^a.jsonl:3: messages\[0\] is switched off, but of a text that is trained"):
        chat.conversation(messages, ROW, train_on="all")


def test_everything_is_trained_even_without_a_turn_of_the_assistant() -> None:
    chat = ChatTemplate(tiny_tokenizer()).conversation(talk("hi"), ROW, train_on="all")
    assert (chat.text, chat.turns) == ("<|im_start|>user\nhi<|im_end|>\n", ((0, 30),))


def test_an_ordinary_token_that_looks_like_a_special_one_ends_turns() -> None:
    tokenizer = tiny_tokenizer(chat_template=CHATML.replace("im_end", "stop"))
    tokenizer.add_tokens(["<|stop|>"])
    chat = ChatTemplate(tokenizer).conversation(talk("a", "b", "c", "d"), ROW)
    assert [chat.text[start:end] for start, end in chat.turns] == ["b<|stop|>", "d<|stop|>"]
