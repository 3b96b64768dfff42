"""A conversation without a terminal: what is typed, and what is written and given to the engine."""

from __future__ import annotations

import os
import pty
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from reallm.cli.chat import COMMANDS, Chat, read_typed
from reallm.data.chat.template import ChatTemplate
from reallm.generation.config import GenerationConfig
from reallm.generation.conversation import Conversation
from tests.helpers.chat_templates import model_tokenizer
from tests.helpers.fake_engine import FakeEngine, as_engine

END = "<|im_end|>"


class Talk:
    """A chat in which the model answers with given texts."""

    def __init__(
        self, *answers: str, model: str = "smollm2", longest_sequence: int | None = None, **options: Any
    ) -> None:
        self.tokenizer, self.longest_sequence = model_tokenizer(model), longest_sequence
        self.answers = [self.tokenizer.encode(answer, add_special_tokens=False) for answer in answers]
        self.engine = FakeEngine(self.tokenizer, tokens=lambda request: self.answers[int(request.key)], **options)
        self.stop, self.stops_at_once = threading.Event(), False

    def type(self, *typed: str | type[BaseException]) -> list[str]:
        """Run the chat; returns the lines that it writes, without styles."""
        written, rest = list[str](), iter([*typed, EOFError])

        def read() -> str:
            one = next(rest)
            if isinstance(one, str):
                return one
            raise one

        @contextmanager
        def stop_requests() -> Iterator[threading.Event]:
            self.stop.clear()
            if self.stops_at_once:
                self.stop.set()
            yield self.stop

        Chat(
            Conversation(self.tokenizer, ChatTemplate(self.tokenizer)),
            as_engine(self.engine),
            GenerationConfig(max_new_tokens=30, min_new_tokens=20),
            longest_sequence=self.longest_sequence,
            read=read,
            write=written.append,
            stop_requests=stop_requests,
        ).run()
        return [line for line in "".join(written).replace("\x1b[2m", "").replace("\x1b[0m", "").split("\n")[1:] if line]

    def prompt(self, number: int) -> str:
        return str(self.tokenizer.decode(self.engine.requests[number].prompt_ids))


def test_the_history_is_what_was_asked_and_what_was_sampled() -> None:
    talk = Talk(f"Hello!{END}", f"I am well.{END}")
    assert talk.type("hi", "", "  How are you? ") == ["Hello!", "I am well."]
    first, second = talk.engine.requests
    assert second.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids
    assert talk.prompt(1).endswith(
        f"<|im_start|>user\nhi{END}\n<|im_start|>assistant\nHello!{END}\n"
        f"<|im_start|>user\nHow are you?{END}\n<|im_start|>assistant\n"
    )
    assert [request.key for request in talk.engine.requests] == [0, 1]


def test_ctrl_c_ends_an_answer_and_not_the_program() -> None:
    talk = Talk("One two three four", f"Fine.{END}")
    steps = iter(range(100))

    def interrupt() -> None:
        if next(steps) == 5:
            talk.stop.set()

    talk.engine.on_step = interrupt
    lines = talk.type("count", KeyboardInterrupt, "How are you?")
    assert lines[0].startswith("One")
    assert "four" not in lines[0]
    assert lines[1:] == ["[interrupted after 6 tokens]", "Ctrl-D or /exit leaves", "Fine."]
    assert f"<|im_start|>assistant\n{lines[0]}" in talk.prompt(1)


def test_an_answer_that_is_interrupted_before_it_began_is_forgotten() -> None:
    talk = Talk("One", f"Fine.{END}")
    talk.stops_at_once = True
    assert talk.type("hi")[-1] == "[interrupted after 0 tokens]"
    talk.stops_at_once = False
    assert talk.type("hello") == ["One"]
    assert "hi" not in talk.prompt(1)


def test_a_long_answer_is_cut_and_goes_on() -> None:
    talk = Talk("a b c d e f g h i j k l m n o p q r s t u v", f"w{END}")
    lines = talk.type("alphabet", "go on")
    assert lines[1] == "[cut after 30 tokens; --max-new-tokens N for more]"
    assert lines[2] == "w"


def test_an_answer_ends_where_the_positions_of_the_model_do() -> None:
    n_tokens = len(Talk("").tokenizer.encode(f"<|im_start|>system\nBe helpful.{END}\n<|im_start|>user\nhi{END}\n"))
    n_tokens += len(Talk("").tokenizer.encode("<|im_start|>assistant\n"))
    talk = Talk("a b c d e f g h")
    talk.longest_sequence = n_tokens + 5
    lines = talk.type("hi", "go on")
    assert lines[:2] == ["a b c d", "[cut after 6 tokens; --max-new-tokens N for more]"]
    assert lines[2].startswith("error: the conversation has ")
    assert lines[2].endswith(f"tokens, and the model {n_tokens + 5} positions; /clear it")


def test_what_is_not_unicode_is_told() -> None:
    talk = Talk(f"a{END}")
    told = "found half of a surrogate pair ('\\udce9'), wanted valid Unicode text"
    lines = talk.type("caf\udce9", "/system \udce9", "hi")
    assert lines == [
        f"error: the conversation: the message: {told}",
        f"error: the conversation: the system message: {told}",
        "a",
    ]


def test_commands() -> None:
    talk = Talk(f"a{END}", f"b{END}", f"c{END}", f"d{END}")
    lines = talk.type(
        "/system", "/system Be brief.", "/system", "one", "two", "/clear", "three", "/help", "/exit now", "four"
    )
    assert lines[:2] == ["there is no system message", "the system message is: Be brief."]
    assert lines[2:5] == ["a", "b", "c"]
    assert [line.split("  ")[0] for line in lines[5:]] == list(COMMANDS)
    assert talk.prompt(0).startswith(f"<|im_start|>system\nBe brief.{END}\n<|im_start|>user\none{END}")
    assert "one" in talk.prompt(1)
    assert (
        talk.prompt(2) == f"<|im_start|>system\nBe brief.{END}\n<|im_start|>user\nthree{END}\n<|im_start|>assistant\n"
    )
    assert len(talk.engine.requests) == 3


@pytest.mark.parametrize(
    ("typed", "hint"), [("/sistem x", "; did you mean '/system'? A"), ("/etc", "; /help lists them; a")]
)
def test_an_unknown_command_is_told(typed: str, hint: str) -> None:
    talk = Talk(f"It is a folder.{END}")
    name = typed.split()[0]
    lines = talk.type(typed, " /etc, what is it?")
    assert lines == [
        f"no command {name}{hint} message that begins with / needs a space before it",
        "It is a folder.",
    ]
    assert "user\n/etc, what is it?" in talk.prompt(0)


def test_what_the_template_or_the_engine_refuses_is_told_and_the_conversation_goes_on() -> None:
    talk = Talk("a<end_of_turn>", model="gemma", max_prompt=60)
    lines = talk.type("/system Be brief.", "long " * 30, "hi")
    assert lines[0] == "error: the conversation: the chat template refuses it: System role not supported"
    assert lines[1].startswith("error: the conversation has ")
    assert lines[2] == "a"
    assert "long" not in talk.prompt(0)


def test_a_message_may_have_several_lines() -> None:
    talk = Talk(f"a{END}")
    assert talk.type("one\ntwo\n", "/system Be\nbrief.", "/system") == ["a", "the system message is: Be", "brief."]
    assert "user\none\ntwo<" in talk.prompt(0)


def test_an_answer_cannot_drive_the_terminal() -> None:
    assert Talk(f"\x1b[2Jgone{END}").type("hi") == [r"\x1b[2Jgone"]


def test_what_is_typed_during_an_answer_is_read_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    user, terminal = pty.openpty()
    with os.fdopen(user, "wb", buffering=0) as keys, os.fdopen(terminal) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        monkeypatch.setattr("builtins.input", lambda prompt: stdin.readline().rstrip("\n"))
        for typed, read in (("hello\n", "hello"), ("\n", "")):
            keys.write(typed.encode())
            assert read_typed() == read
        keys.write(b"\x04")
        with pytest.raises(EOFError):
            read_typed()
