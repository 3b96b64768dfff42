"""`reallm generate MODEL --chat` on a terminal: a conversation."""

from __future__ import annotations

import fcntl
import os
import select
import sys
import termios
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import typer

from reallm.cli.generation_model import GivenModel, check_model, events, load_model
from reallm.cli.generation_view import ShownText, Write, ending, note
from reallm.errors import DataError, did_you_mean
from reallm.generation.conversation import Conversation
from reallm.generation.request import Completion, FinishedEvent, Request
from reallm.printable import printable

if TYPE_CHECKING:
    from reallm.generation.config import GenerationConfig
    from reallm.generation.engine import GenerationEngine
    from reallm.launch.signals import StopRequest

PROMPT = "> "
COMMANDS = {
    "/system TEXT": "set the system message; without TEXT, show it",
    "/clear": "forget the conversation, but not the system message",
    "/help": "show this",
    "/exit": "leave; so does Ctrl-D",
}


class Chat:
    """A loop that reads messages and commands, and writes answers as they are generated.

    Args:
        conversation: the messages so far.
        engine: the engine, which computes what one prompt has in common with the one before it only once.
        config: settings for sampling tokens and for ending an answer.
        longest_sequence: most tokens that the model has positions for; None: any number.
        read: function that reads what the user types; raises EOFError for Ctrl-D, and KeyboardInterrupt for Ctrl-C.
        write: where to write.
        stop_requests: function that makes a context with a flag, which Ctrl-C sets in an answer.
    """

    def __init__(
        self,
        conversation: Conversation,
        engine: GenerationEngine,
        config: GenerationConfig,
        *,
        longest_sequence: int | None = None,
        read: Callable[[], str],
        write: Write,
        stop_requests: Callable[[], AbstractContextManager[StopRequest]],
    ) -> None:
        self._conversation, self._engine, self._config = conversation, engine, config
        self._read, self._write, self._stop_requests = read, write, stop_requests
        self._longest_sequence = longest_sequence
        self._n_answers = 0

    def run(self) -> None:
        """Talk until the user leaves."""
        self._say("Ctrl-C ends an answer, Ctrl-D leaves, /help lists the commands")
        while True:
            try:
                text = self._read()
            except EOFError:
                self._write("\n")
                return
            except KeyboardInterrupt:
                self._write("\n")
                self._say("Ctrl-D or /exit leaves")
                continue
            name, text = _split(text)
            if name == "/exit":
                return
            try:
                if name:
                    self._command(name, text)
                elif text:
                    self._answer(text)
            except DataError as error:
                self._say(f"error: {error}")

    def _command(self, name: str, text: str) -> None:
        conversation = self._conversation
        if name == "/system" and text:
            conversation.set_system(text)
        elif name == "/system":
            system = conversation.system
            self._say("there is no system message" if system is None else f"the system message is: {system}")
        elif name == "/clear":
            conversation.clear()
        elif name == "/help":
            for command, meaning in COMMANDS.items():
                self._say(f"{command:<14}{meaning}")
        else:
            hint = did_you_mean(name, [command.split()[0] for command in COMMANDS])
            rest = f"{hint} A" if hint else "; /help lists them; a"
            self._say(f"no command {name}{rest} message that begins with / needs a space before it")

    def _answer(self, text: str) -> None:
        ids = self._conversation.ask(text)
        request = Request(tuple(ids), self._config_after(len(ids)), key=self._n_answers)
        completion = self._stream(request)
        self._n_answers += 1
        if completion.token_ids:
            self._conversation.answer(completion.token_ids, completion.text or "")

    def _config_after(self, n_tokens: int) -> GenerationConfig:
        """The settings for an answer to a conversation of so many tokens, which ends where the positions do."""
        config, longest = self._config, self._longest_sequence
        if longest is None or n_tokens + config.max_new_tokens <= longest + 1:  # the last new token is never read
            return config
        room = longest + 1 - n_tokens
        if room < 1:
            raise DataError(f"the conversation has {n_tokens:,} tokens, and the model {longest:,} positions; /clear it")
        return replace(config, max_new_tokens=room, min_new_tokens=min(room, config.min_new_tokens))

    def _stream(self, request: Request) -> Completion:
        """Write an answer while it is generated."""
        shown = ShownText()
        completion = Completion(list(request.prompt_ids))
        with self._stop_requests() as stop:
            for event in events(self._engine, [("the conversation", request)], stop):
                self._write(shown.push(event.text))
                if isinstance(event, FinishedEvent):
                    completion = event.completion
        self._write(f"{ending(completion)}\n\n")
        return completion

    def _say(self, text: str) -> None:
        """Write a line that is not the model's."""
        self._write(f"{note(printable(text))}\n")


def _split(typed: str) -> tuple[str, str]:
    """The command, which is empty for a message, and the text after it."""
    if not typed.startswith("/"):
        return "", typed.strip()
    name, *rest = typed.split(maxsplit=1)
    return name, "".join(rest).strip()


def read_typed() -> str:
    """What the user types, or has typed during an answer.

    Raises:
        EOFError: Ctrl-D, also if it was pressed during an answer, which readline would overlook.
        KeyboardInterrupt: Ctrl-C.
    """
    terminal = sys.stdin.fileno()
    if select.select([terminal], [], [], 0)[0] and not _bytes_waiting(terminal):
        os.read(terminal, 1)  # the end of file, which is not left to the shell
        raise EOFError
    return input(PROMPT)


def _bytes_waiting(terminal: int) -> int:
    return int.from_bytes(fcntl.ioctl(terminal, termios.FIONREAD, bytes(4)), sys.byteorder)


def converse(model: GivenModel, config: GenerationConfig) -> None:
    """Load a model and talk with it on the terminal.

    Args:
        model: the model.
        config: settings for sampling tokens and for ending an answer.
    """
    from reallm.data.chat.template import ChatTemplate
    from reallm.launch.signals import stop_requests

    with suppress(ImportError):
        import readline  # noqa: F401 - gives `input` editing, history and pastes of several lines

    loaded = load_model(model, check_model(model), chat=True)

    from reallm.engine.diagnosis import nonfinite_explained  # imports torch, so only when everything else is right

    conversation = Conversation(loaded.tokenizer, ChatTemplate(loaded.tokenizer))
    with nonfinite_explained(loaded.model.network), loaded.model.generation_engine(loaded.tokenizer) as engine:
        Chat(
            conversation,
            engine,
            config,
            longest_sequence=loaded.model.config.longest_sequence,
            read=read_typed,
            write=partial(typer.echo, nl=False),
            stop_requests=partial(stop_requests, announce=False),
        ).run()
