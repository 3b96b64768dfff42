"""Reads the tokens of a conversation back as turns, for people: a guess from the special tokens.

<|im_start|>user\\nhi<|im_end|>\\n<|im_start|>assistant\\n  ->  user: hi
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from reallm.data.special_tokens import special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "model": "assistant",
    "tool": "tool",
    "ipython": "tool",
    "observation": "tool",
}
_MARKERS = {
    "[INST]": "user",
    "[/INST]": "assistant",
    "[SYSTEM_PROMPT]": "system",
    "[AVAILABLE_TOOLS]": "system",
    "[TOOL_RESULTS]": "tool",
    "[/TOOL_RESULTS]": "assistant",
}
"""Special tokens with which a role begins, and which do not have its name."""

_CALL_TOKEN = re.compile(r"call|python", re.IGNORECASE)
_CALL = re.compile(
    r"<tool_call>\s*(.*?)\s*(?:</tool_call>|\Z)|\[TOOL_CALLS\]\s*(.*)|<\|python_tag\|>\s*(.*)"
    r"""|\A\s*(\{"name":\s*".*\})\s*\Z""",
    re.DOTALL,
)


class Said(NamedTuple):
    """A turn of a conversation: who said what; the role is that of messages (system, user, assistant, tool)."""

    role: str
    text: str


def read_transcript(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[Said]:
    """The turns in the tokens of a conversation, without an empty one at the end, which is the prompt for an answer.

    Empty if there are no roles, as in a text without a chat template.
    """
    said: list[Said] = []
    role, in_header = "", False
    for is_special, text in _pieces(ids, tokenizer):
        named = _named_role(text) if is_special else ""
        if is_special and role and _CALL_TOKEN.search(text):
            said[-1] = Said(role, said[-1].text + text)
        elif named:
            role = named
            said.append(Said(role, ""))
        elif is_special:
            role = role if in_header else ""
        elif role:
            said[-1] = Said(role, said[-1].text + text)
        else:
            first, _, rest = text.lstrip().partition("\n")
            role = _ROLES.get(first.strip().lower(), "")
            if role:
                said.append(Said(role, rest))
        in_header = not is_special and bool(role) and not said[-1].text
    turns = [Said(one.role, one.text.strip()) for one in said]
    while turns and not turns[-1].text:
        turns.pop()
    return turns


def split_calls(text: str) -> tuple[str, list[str]]:
    """A text without the tool calls in it, and these, without what marks them."""
    calls = [next(filter(None, match), "") for match in _CALL.findall(text)]
    return (_CALL.sub("", text).strip(), calls) if calls else (text, [])


def _pieces(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[bool, str]]:
    """Each special token, and each text between them."""
    for is_special, run in groupby(ids, key=special_ids(tokenizer).__contains__):
        tokens = list(run)
        for piece in [[token] for token in tokens] if is_special else [tokens]:
            yield is_special, str(tokenizer.decode(piece))


def _named_role(token: str) -> str:
    """The role that a special token begins, as `<|user|>` does; empty if none."""
    words = re.findall("[a-z]+", token.lower())
    return _MARKERS.get(token.strip()) or next((_ROLES[word] for word in words if word in _ROLES), "")
