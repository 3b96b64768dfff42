"""Rows of prompts with what was generated, for files and for programs. Imports no torch.

{"prompt": "1 + 1 =", "id": 7}  ->  {"prompt": "1 + 1 =", "id": 7, "completion": " 2", "n_tokens": 2, ...}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from reallm.data.row import Row
from reallm.generation.request import Completion

ADDED = ("completion", "completions", "n_tokens", "finish_reason")
"""Keys that the rows of the result have in addition."""


def completed(row: Mapping[str, Any], completions: Sequence[Completion]) -> dict[str, Any]:
    """The row of a prompt with its completion; with several, the values are lists."""
    if len(completions) == 1:
        [only] = completions
        return {
            **row,
            "completion": only.text,
            "n_tokens": len(only.token_ids),
            "finish_reason": only.finish_reason,
        }
    return {
        **row,
        "completions": [one.text for one in completions],
        "n_tokens": [len(one.token_ids) for one in completions],
        "finish_reason": [one.finish_reason for one in completions],
    }


def check_columns(row: Row) -> None:
    """Raise DataError if the row cannot be carried along."""
    taken = next((key for key in ADDED if key in row.values), None)
    if taken is not None:
        raise row.error(f"has the key '{taken}', which the file of completions uses; rename it")
    try:
        json.dumps(row.values)
    except (TypeError, ValueError) as error:
        raise row.error(f"cannot be written as JSON: {error}") from error
