"""Chat templates by name, from a file or as text, in place of the one that a tokenizer has."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from reallm.arguments import as_path
from reallm.data.chat.template import TOKEN, ChatTemplate
from reallm.errors import ConfigError, did_you_mean
from reallm.foreign_files import read_bytes, reading
from reallm.notices import notify_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMES = ("chatml", "llama3", "plain")
"""Templates that come with this package."""

_KEY = "dataset.chat_template"


def set_chat_template(tokenizer: PreTrainedTokenizerBase, chat_template: str, *, role: str = "model") -> None:
    """Give a tokenizer another chat template.

    The tokens that it writes become special ones, and the one that ends its turns the end-of-sequence token.

    Args:
        tokenizer: the tokenizer, which is changed.
        chat_template: the name of one of several templates that the tokenizer has; one of `NAMES`; the path of a file;
            or a template as text.
        role: the role of the tokenizer's model, for a note.

    Raises:
        ConfigError: there is no such template, its file cannot be read, or it is not valid Jinja.
    """
    text = _find(tokenizer, chat_template)
    _check(text, "the template" if text == chat_template else chat_template)
    tokenizer.chat_template = text
    written, vocabulary = dict.fromkeys(TOKEN.findall(text)), tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in written if token in vocabulary], special_tokens=True)
    not_tokens = [token for token in written if token not in vocabulary]
    if not_tokens:
        notify_once(
            f"{_KEY} writes {' and '.join(not_tokens)}, which the tokenizer splits like any text; make tokens of them "
            f"with {role}.add_tokens=[{','.join(not_tokens)}]"
        )
    ends = ChatTemplate(tokenizer).end_tokens
    if ends and tokenizer.eos_token not in ends:
        tokenizer.eos_token = ends[0]


def _find(tokenizer: PreTrainedTokenizerBase, chat_template: str) -> str:
    own = tokenizer.chat_template if isinstance(tokenizer.chat_template, dict) else {}
    if chat_template in own:
        return str(own[chat_template])
    if chat_template in NAMES:
        return (files(__package__) / "templates" / f"{chat_template}.jinja").read_text(encoding="utf-8")
    if "{{" in chat_template or "{%" in chat_template:
        return chat_template
    path = as_path(chat_template)
    try:
        with reading(f"{_KEY}: {path}", error=ConfigError, passing=(OSError,)):
            return read_bytes(path).decode("utf-8")
    except OSError as error:
        names = [*own, *NAMES]
        hint = did_you_mean(chat_template, names)
        raise ConfigError(
            f"{_KEY}={chat_template}: no such template or file{hint}; known are {', '.join(names)}"
        ) from error


def _check(text: str, name: str) -> None:
    from jinja2 import TemplateSyntaxError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012  # an instance variable in jinja2's own types

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    try:
        with reading(f"{_KEY}: {name}", error=ConfigError, passing=(TemplateSyntaxError,)):
            ImmutableSandboxedEnvironment(extensions=[loopcontrols, Generation]).parse(text)
    except TemplateSyntaxError as error:
        raise ConfigError(f"{_KEY}: {name}, line {error.lineno}: {error.message}") from error
