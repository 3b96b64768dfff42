"""Where a turn is in the text of a conversation."""

from __future__ import annotations

import pytest

from reallm.data.chat.turns import Turn, find_turn, is_complete, reasoning
from reallm.data.messages import Message


@pytest.mark.parametrize(
    ("whole", "after", "turn"),
    [
        ("Q:A.\nQ:", "Q:A.\n", Turn(2, 5, "")),
        ("Q:A.\nQ:", "Q:<t>why</t>A.\n", Turn(2, 5, "<t>why</t>")),
        ("Q:B.\nQ:", "Q:A.\n", Turn(2, 2, "A.\n")),
        ("Q:abab", "Q:ababcabab", Turn(2, 6, "ababc")),
        ("Q:aab", "Q:aaab", Turn(2, 5, "a")),
        ("Q:", "Q:A.\n", Turn(2, 2, "A.\n")),
        ("R:A.\nQ:", "Q:A.\n", None),
        ("Q:A.\nQ:", "R:A.\n", None),
    ],
)
def test_find_turn(whole: str, after: str, turn: Turn | None) -> None:
    assert find_turn(whole, "Q:", after) == turn


def test_a_long_turn_that_repeats_itself_is_found() -> None:
    n = 100_000
    assert find_turn(f"Q:{'ab' * n}c", "Q:", f"Q:{'ab' * n}{'ab' * n}") == Turn(2, 2 + 2 * n, "ab" * n)


def test_nothing_but_tags_may_be_missing() -> None:
    message: Message = {"role": "assistant", "content": "A."}
    assert is_complete(Turn(2, 5, "<think>\n\n</think>\n\n"), "Q:A.\n", message)
    assert is_complete(Turn(2, 5, "[THINK][/THINK]"), "Q:A.\n", message)
    assert not is_complete(Turn(2, 5, "<think>why</think>"), "Q:A.\n", message)
    assert not is_complete(Turn(2, 5, ""), "Q:A.\n", {**message, "content": "<think>why</think>A."})
    assert not is_complete(Turn(2, 5, ""), "Q:A.\n", {**message, "reasoning_content": "why"})


def test_reasoning_is_in_keys_of_its_own_or_in_the_content() -> None:
    assert reasoning({"role": "assistant", "content": "a </b>"}) == []
    assert reasoning({"role": "assistant", "content": "<think>\n\n</think>\n\na"}) == []
    assert reasoning({"role": "assistant", "content": "<think>\n why\n</think>\n\na"}) == ["why"]
    assert reasoning({"role": "assistant", "content": "why</think>a"}) == ["why"]
    assert reasoning({"role": "assistant", "thinking": " why ", "reasoning_content": "why"}) == ["why"]
