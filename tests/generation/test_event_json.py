"""Events as JSON values are the same events afterwards, bit for bit."""

from __future__ import annotations

import json
import math

import pytest

from reallm.generation.event_json import event_from_json, event_to_json
from reallm.generation.request import Completion, FinishedEvent, TokenEvent

EVENTS = [
    TokenEvent(3, 1, 7, -0.1, "é\n"),
    TokenEvent(3, 1, 7, 1 / 3, "\ud83d", [(7, -0.1), (0, -math.inf)]),
    FinishedEvent(4, 0, Completion([1, 2]), ""),
    FinishedEvent(
        4,
        2,
        Completion(
            [1, 2], [7, 8], [-0.1, 5e-324], "stop", "<7>", 2, 8, "<7", [-1.5, -0.25], [1.0, 0.5], [[1, 7], []],
            [[(7, -0.1)], []],
        ),
        "rest",
    ),
]  # fmt: skip


@pytest.mark.parametrize("event", EVENTS)
def test_there_and_back(event):
    assert event_from_json(json.loads(json.dumps(event_to_json(event))), (1, 2)) == event
