"""The final number of a text."""

from __future__ import annotations

from fractions import Fraction

import pytest

from reallm_rewards.numbers import final_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("First 7, then the answer is 1,234.50.", Fraction(2469, 2)),
        ("It costs $18.", 18),
        ("-$3", -3),
        ("50%", 50),
        ("-0", 0),
        ("a = -5", -5),
        ("\N{MINUS SIGN}5", -5),
        ("3-5", 5),
        ("3 - 5", 5),
        ("1.5e3", 1500),
        ("5 / 10", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("16 - 3 = 13, 13 * 2 = 26\n#### 26", 26),
        ("#### -1,000", -1000),
        (r"\boxed{5}, as 2 + 3 and not 7", 5),
        (r"\boxed{1{,}000}", 1000),
        (r"\boxed{\frac{-3}{4}}", Fraction(-3, 4)),
        (r"\boxed{-\frac{1}{2}}", Fraction(-1, 2)),
        (r"\boxed{\text{\$}18}", 18),
        ("<answer>12</answer> or 99", 12),
        ("1,2,3", 3),
        ("12,34", 34),
        ("no number", None),
        ("", None),
        ("1/0", None),
        ("1e999999999", None),
        ("1" * 5000, None),
    ],
)
def test_the_number_that_is_the_answer(text, number):
    assert final_number(text) == number
