"""The formats that rows can have, how each is recognised, and how it becomes the format that datasets read.

Datasets read `prompt` and `answer`, `messages` and `tools`, `text`, or `prompt` with `chosen` and `rejected`. Rows that
have these keys already are reallm's own: one file may mix them, and nothing is said about them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from reallm.data.row import Row
from reallm.data.row_formats import alpaca, completion, conversation, pairs, sharegpt
from reallm.data.row_formats.conversion import converted, is_conversation
from reallm.errors import ConfigError, DataError, did_you_mean, nearest, quoted


@dataclass(frozen=True)
class RowFormat:
    """A format of rows.

    Args:
        title: how messages call it: "rows look like ShareGPT".
        matches: whether a row has the keys of the format.
        convert: a row in the format that datasets read. Raises DataError if a value is missing or wrong.
        is_own: whether rows are in that format already.
    """

    title: str
    matches: Callable[[Row], bool]
    convert: Callable[[Row], Row]
    is_own: bool = False


def _has(*keys: str) -> Callable[[Row], bool]:
    return lambda row: all(key in row for key in keys)


def _text(row: Row) -> Row:
    return converted(row, {"text": row.text("text")}, (), {})


FORMATS: Mapping[str, RowFormat] = {
    "openai_preference": RowFormat("OpenAI's preference data", pairs.matches_openai, pairs.convert_openai),
    "messages": RowFormat("messages", conversation.matches, conversation.convert, is_own=True),
    "sharegpt": RowFormat("ShareGPT", sharegpt.matches, sharegpt.convert),
    "preference": RowFormat("pairs of answers", pairs.matches, pairs.convert, is_own=True),
    "prompt_answer": RowFormat(
        "prompts and answers", _has("prompt", "answer"), lambda row: completion.join(row, "answer"), is_own=True
    ),
    "prompt_completion": RowFormat("prompts and completions", completion.matches, completion.convert),
    "alpaca": RowFormat("Alpaca", alpaca.matches, alpaca.convert),
    "alpaca_prompt": RowFormat("Alpaca", alpaca.matches, alpaca.convert_to_prompt),
    "text": RowFormat("plain text", _has("text"), _text, is_own=True),
    "prompt": RowFormat("prompts", _has("prompt"), completion.convert_prompt, is_own=True),
}
"""Name -> format, in the order in which they are tried: of two that match a row, the first one is its format."""

KEYS = (
    *("id", "prompt", "answer", "messages", "tools", "text", "chosen", "rejected", "pos_answers", "neg_answers"),
    *("completion", "conversations", "system", "instruction", "input", "output", "history", "functions"),
    *("preferred_output", "non_preferred_output", "margin", "label"),
)
"""The keys that the formats have, which `columns` can map."""

_OTHER_NAMES = {
    "prompt": ("question", "query", "instruction", "problem", "input", "request", "user"),
    "answer": ("response", "output", "completion", "target", "solution", "reply", "answers", "assistant"),
    "completion": ("response", "output", "answer", "target", "reply", "assistant"),
    "label": ("desirable", "is_good", "good", "thumbs_up"),
    "chosen": ("preferred", "chosen_response", "better", "winner"),
    "rejected": ("dispreferred", "rejected_response", "worse", "loser"),
    "messages": ("dialog", "dialogue", "chat", "turns", "conv"),
    "text": ("content", "document", "body", "story"),
}
"""Key -> names that people give it, in lower case, for suggestions."""


def check_format(name: str) -> None:
    """Raise ConfigError unless there is such a format."""
    if name not in FORMATS:
        raise ConfigError(f"format={name} is not one of {', '.join(FORMATS)}{did_you_mean(name, FORMATS)}")


def check_columns(columns: Mapping[str, str]) -> None:
    """Raise ConfigError if a key on the left is none that rows can have."""
    for key in columns:
        if key not in KEYS:
            hint = did_you_mean(key, KEYS) or f"; the keys are {', '.join(KEYS)}"
            raise ConfigError(f"columns.{key}={columns[key]}: no format of rows has the key '{key}'{hint}")


def recognise(row: Row) -> RowFormat | None:
    """The format of a row by its keys; None if it has those of none."""
    return next((row_format for row_format in FORMATS.values() if row_format.matches(row)), None)


def convert_like(row: Row, row_format: RowFormat) -> Row:
    """The row in the format that datasets read, if it has the `row_format` of the first rows; own rows may be mixed.

    Raises:
        DataError: the row has another format, or a value is missing or wrong.
    """
    found = recognise(row)
    if row_format.is_own and (found is None or found.is_own):
        return _as_own(row)
    if found is row_format:
        return row_format.convert(row)
    looks = f"looks like {found.title}" if found else f"has other keys{row.listed_keys()}"
    raise row.error(f"the row {looks}, but the first ones look like {row_format.title}; keep to one format in a file")


def _as_own(row: Row) -> Row:
    """A row that has keys of datasets, perhaps of several formats, all of which stay."""
    original = row.original
    if "chosen" in row and "rejected" in row:
        values, names = pairs.pair(row)
        names = {key: row.name(name) for key, name in names.items()}
        row = dataclasses.replace(row, values={**row.values, **values}, names={**row.names, **names})
    elif "messages" not in row and is_conversation(row.values.get("prompt")):
        return completion.join(row, "answer") if "answer" in row else completion.convert_prompt(row)
    if "messages" in row:
        kept = {key: value for key, value in row.values.items() if key != "functions"}
        row = dataclasses.replace(row, values={**kept, **conversation.values(row)})
    return dataclasses.replace(row, converted_from=original)


def check_column(row: Row, key: str, wanted: str) -> None:
    """Raise DataError unless the row has the key; it names the column that seems to be meant, as `dataset.columns`."""
    if key in row:
        return
    found = "null" if key in row.values else f"no such key{row.listed_keys()}"
    columns = [str(column) for column, value in row.original.items() if value is not None and column not in KEYS]
    others = (column for column in columns if column.lower() in _OTHER_NAMES.get(key, ()))
    meant = next(others, None) or nearest(key, columns)
    hint = f"; give dataset.columns.{key}={meant}" if meant else ""
    raise row.error(f"key '{row.name(key)}': found {found}, wanted {wanted}{hint}")


def unrecognised(row: Row) -> DataError:
    """The error for rows without the keys of any format, with what could be done."""
    if not any(value is not None for value in row.values.values()):
        return row.error("the row is empty")
    for key, column in row.names.items():
        if key not in row:
            hint = did_you_mean(column, map(row.name, row.values)) or row.listed_keys()
            return row.error(f"found no such key '{column}', which dataset.columns.{key} names{hint}")
    found = {str(key).lower(): str(key) for key, value in row.values.items() if value is not None}
    columns = {
        key: found[name]
        for key, names in _OTHER_NAMES.items()
        if (name := next((name for name in (key, *names) if name in found), None))
    }
    for keys in (("prompt", "chosen", "rejected"), ("prompt", "answer"), ("messages",), ("text",), ("prompt",)):
        if all(key in columns for key in keys):
            break
    else:
        keys, columns = ("prompt", "answer"), {"prompt": "KEY", "answer": "KEY"}
    remedy = " ".join(f"dataset.columns.{key}={columns[key]}" for key in keys if columns[key] != key)
    return row.error(
        f"cannot recognise the format of rows with the keys {quoted(list(found.values()), 8)}; "
        f"say which are which ({remedy}), or give dataset.format ({', '.join(FORMATS)})"
    )
