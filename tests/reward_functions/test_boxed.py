"""The argument of the last box."""

from __future__ import annotations

import pytest

from reallm_rewards.boxed import last_boxed


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\fbox {x}", "x"),
        (r"\boxed{1} \boxed{2", "1"),
        (r"\boxed{}", ""),
        ("1", None),
    ],
)
def test_the_argument_of_the_last_complete_box(text, argument):
    assert last_boxed(text) == argument
