"""The final number of a text, as an exact fraction."""

from __future__ import annotations

import re
from fractions import Fraction

from reallm_rewards.boxed import last_boxed
from reallm_rewards.texts import answer_text

_UNSIGNED = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    r"(?:(?<![\w.)\]}])(?P<sign>[-+]))?[$€£]?"
    rf"(?:\\[dt]?frac\{{(?P<top>-?{_UNSIGNED})\}}\{{(?P<bottom>-?{_UNSIGNED})\}}"
    rf"|(?P<value>{_UNSIGNED})(?:[eE](?P<exponent>[-+]?\d+)(?!\w)|\s?/\s?(?P<divisor>{_UNSIGNED}))?)"
)
_LATEX = {"{,}": ",", r"\,": "", r"\!": "", r"\$": "$", r"\%": "%", r"\left": "", r"\right": "", "\N{MINUS SIGN}": "-"}
_MARK = "####"
_MAX_EXPONENT, _MAX_DIGITS = 400, 1000


def final_number(text: str) -> Fraction | None:
    r"""The number that a text gives as its answer; None if it has none.

    It is the last number in the last `<answer>...</answer>`, else in the last `\boxed{...}`, else after the last
    `####`, else in the text. Numbers may have a sign, thousands separators (`1,234.5`), an exponent (`1.2e3`), or be
    fractions (`3/4`, `\frac{3}{4}`); signs of currencies and percent are passed over.
    """
    part = answer_text(text)
    boxed = last_boxed(part)
    part = part.rpartition(_MARK)[2] if boxed is None else boxed
    for written, meant in _LATEX.items():
        part = part.replace(written, meant)
    numbers = list(_NUMBER.finditer(part))
    return _value(numbers[-1]) if numbers else None


def _value(found: re.Match[str]) -> Fraction | None:
    sign = -1 if found["sign"] == "-" else 1
    exponent = int(found["exponent"] or 0) if len(found["exponent"] or "") < 5 else _MAX_EXPONENT + 1
    if len(found.group()) > _MAX_DIGITS or abs(exponent) > _MAX_EXPONENT:
        return None  # its exact value could fill the memory
    top = Fraction(_plain(found["top"] or found["value"]))
    bottom = Fraction(_plain(found["bottom"] or found["divisor"] or "1"))
    return sign * top * Fraction(10) ** exponent / bottom if bottom else None


def _plain(number: str) -> str:
    return number.replace(",", "")
