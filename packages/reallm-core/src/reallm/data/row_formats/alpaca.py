"""Alpaca: `instruction`, `input`, which may be empty, and `output`; sometimes with `system` and `history`.

Chat models are trained in their chat template, which is how they are asked later; a model without a template is trained
in the Alpaca prompt. So a row becomes `messages`, and `prompt` and `answer` beside them for tokenizers without one.
"""

from __future__ import annotations

from typing import Any

from reallm.data.row import Row, describe
from reallm.data.row_formats.conversion import Message, converted

_TASK = "Below is an instruction that describes a task"
_INPUT = ", paired with an input that provides further context"
_REQUEST = ". Write a response that appropriately completes the request.\n\n### Instruction:\n"

_TAKEN = ("instruction", "input", "output", "system", "history")
_NAMES = {"messages": "instruction", "prompt": "instruction", "answer": "output"}


def matches(row: Row) -> bool:
    """Whether the row has an instruction and an output."""
    return "instruction" in row and "output" in row


def convert(row: Row) -> Row:
    """Give `messages`; and, unless there is more than one turn, `prompt` and `answer`."""
    values: dict[str, Any] = {"messages": _messages(row)}
    if not _optional(row, "system") and not _history(row):
        values.update(_prompt_answer(row))
    return converted(row, values, _TAKEN, _NAMES)


def convert_to_prompt(row: Row) -> Row:
    """Give `prompt` and `answer`, whether or not the tokenizer has a chat template."""
    for key, found in (("system", _optional(row, "system")), ("history", _history(row))):
        if found:
            raise row.error(f"key '{row.name(key)}': the Alpaca prompt has no place for it; use dataset.format=alpaca")
    return converted(row, _prompt_answer(row), _TAKEN, _NAMES)


def _messages(row: Row) -> list[Message]:
    instruction, given, output = row.text("instruction"), _optional(row, "input"), row.text("output")
    messages = [{"role": "system", "content": system}] if (system := _optional(row, "system")) else []
    for question, answer in _history(row):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    question = f"{instruction}\n\n{given}" if given else instruction
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": output}]


def _prompt_answer(row: Row) -> dict[str, str]:
    instruction, given = row.text("instruction"), _optional(row, "input")
    task = f"{_TASK}{_INPUT if given else ''}{_REQUEST}{instruction}"
    context = f"\n\n### Input:\n{given}" if given else ""
    return {"prompt": f"{task}{context}\n\n### Response:\n", "answer": row.text("output")}


def _optional(row: Row, key: str) -> str:
    """The text of `key`, empty if there is none or it is blank."""
    text = row.text(key) if key in row else ""
    return text if text.strip() else ""


def _history(row: Row) -> list[tuple[str, str]]:
    """Earlier questions with their answers."""
    turns = row.get("history", list) if "history" in row else []
    for i, turn in enumerate(turns):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise row.error(
                f"key '{row.name('history')}[{i}]': found {describe(turn)}, wanted a question and its answer"
            )
    return [(question, answer) for question, answer in turns]
