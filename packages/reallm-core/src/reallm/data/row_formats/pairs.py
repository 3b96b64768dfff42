"""Pairs of a better and a worse answer: `chosen` and `rejected`, with a `prompt` or with the whole text in both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from reallm.data.row import Row, describe
from reallm.data.row_formats import sharegpt
from reallm.data.row_formats.conversion import converted, message_list

_PROMPT_COLUMNS = ("question", "query", "instruction", "problem")
"""Other names of the column with the prompt: a row that has one is not searched for a prompt in its answers."""

_ASSISTANT = re.compile(
    r"\n\nAssistant:|<\|im_start\|>assistant\n|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n"
    r"|<\|assistant\|>\n?|<start_of_turn>model\n|\[/INST\]|### (?:Response|Assistant):\n?"
)
"""What stands before an answer in texts of dialogues."""
_OPENAI = ("input", "preferred_output", "non_preferred_output")


def matches(row: Row) -> bool:
    """Whether the row has pairs of answers."""
    return ("chosen" in row and "rejected" in row) or ("pos_answers" in row and "neg_answers" in row)


def convert(row: Row) -> Row:
    """Give `prompt`, `chosen` and `rejected`; of two texts without a prompt, it is the beginning that they share."""
    if "pos_answers" in row or "neg_answers" in row:
        keys = ("prompt", "pos_answers", "neg_answers")
        return converted(row, {key: row.values[key] for key in keys if key in row}, (), {})
    values, names = pair(row)
    return converted(row, values, (), names)


def pair(row: Row) -> tuple[dict[str, Any], dict[str, str]]:
    """The values `prompt`, if there is one, `chosen` and `rejected`; and the keys in which they were found.

    A prompt that both texts begin with was found in `chosen`.
    """
    chosen, rejected = _answer(row, "chosen"), _answer(row, "rejected")
    if "prompt" in row:
        return {"prompt": _with_system(row, chosen), "chosen": chosen, "rejected": rejected}, {}
    if isinstance(chosen, list) or isinstance(rejected, list):
        return {"chosen": chosen, "rejected": rejected}, {}
    prompt = _shared_prompt(row, chosen, rejected)
    values = {"prompt": prompt, "chosen": chosen[len(prompt) :], "rejected": rejected[len(prompt) :]}
    return values, {"prompt": "chosen"}


def prompt_was_found(row: Row) -> bool:
    """Whether the prompt of a converted row is what its two answers began with."""
    return row.name("prompt") == row.name("chosen")


def _with_system(row: Row, chosen: Any) -> Any:
    """The prompt; with a text `system` beside it, and answers as text, as messages."""
    prompt, system = row.values["prompt"], row.values.get("system")
    if not isinstance(prompt, str) or not isinstance(chosen, str) or not isinstance(system, str) or not system.strip():
        return prompt
    return [{"role": "system", "content": row.text("system")}, {"role": "user", "content": row.text("prompt")}]


def _answer(row: Row, key: str) -> Any:
    """A text or a list of messages, of which a single one may be there without the list."""
    value = row.get(key, (str, list, dict), "text or a list of messages")
    if not isinstance(value, Mapping):
        return value
    return [sharegpt.message(row, value, row.name(key))] if "from" in value else [value]


def _shared_prompt(row: Row, chosen: str, rejected: str) -> str:
    """The beginning of both texts, up to the last `Assistant:` in it or the like, or else up to the last whole word.

    `The sum is 12.` and `The sum is 13.` have the prompt `The sum is`, and the answers ` 12.` and ` 13.`.
    """
    for name in _PROMPT_COLUMNS:
        if isinstance(row.values.get(name), str | list):
            raise row.error(
                f"key '{row.name('prompt')}': found no such key{row.listed_keys()}; '{name}' seems to be it: give "
                f"dataset.columns.prompt={name}"
            )
    both = zip(chosen, rejected, strict=False)
    n_shared = next((i for i, (one, other) in enumerate(both) if one != other), min(len(chosen), len(rejected)))
    shared = chosen[:n_shared]
    marks = list(_ASSISTANT.finditer(shared))
    if marks:
        return shared[: marks[-1].end()]
    while shared and not shared[-1].isspace():
        shared = shared[:-1]
    if not shared.strip():
        names = f"'{row.name('chosen')}' and '{row.name('rejected')}'"
        found = f"no such key{row.listed_keys()}, and {names} share no beginning that could be the prompt"
        raise row.error(f"key '{row.name('prompt')}': found {found}")
    return shared.rstrip()


def matches_openai(row: Row) -> bool:
    """Whether the row is one of OpenAI's preference fine-tuning."""
    return all(key in row for key in _OPENAI) and isinstance(row.values["input"], Mapping)


def convert_openai(row: Row) -> Row:
    """Give `prompt`, `chosen` and `rejected` as messages, and `tools`."""
    given = row.get("input", dict)
    if not isinstance(given.get("messages"), list):
        raise row.error(f"key '{row.name('input')}.messages': found {describe(given.get('messages'))}, wanted a list")
    values = {
        "prompt": given["messages"],
        "chosen": message_list(row, "preferred_output"),
        "rejected": message_list(row, "non_preferred_output"),
    }
    if given.get("tools"):
        values["tools"] = given["tools"]
    names = {"prompt": "input.messages", "chosen": "preferred_output", "rejected": "non_preferred_output"}
    return converted(row, values, _OPENAI, names)
