"""Events of the engine as JSON values, and back. Prompts are left out: readers have the requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reallm.generation.request import Completion, Event, FinishedEvent, TokenEvent


def event_to_json(event: Event) -> dict[str, Any]:
    """A JSON value of an event."""
    value = dict(vars(event))
    if isinstance(event, FinishedEvent):
        value["completion"] = {**vars(event.completion), "prompt_ids": None}
    return value


def event_from_json(value: dict[str, Any], prompt_ids: Sequence[int]) -> Event:
    """The inverse of `event_to_json`, given the prompt."""
    if "completion" not in value:
        top = value["top_logprobs"]
        return TokenEvent(**{**value, "top_logprobs": None if top is None else _pairs(top)})
    fields, top = value["completion"], value["completion"]["top_logprobs"]
    completion = Completion(
        **{
            **fields,
            "prompt_ids": list(prompt_ids),
            "top_logprobs": None if top is None else [_pairs(each) for each in top],
        }
    )
    return FinishedEvent(**{**value, "completion": completion})


def _pairs(values: Sequence[Sequence[Any]]) -> list[tuple[int, float]]:
    return [(token_id, logprob) for token_id, logprob in values]
