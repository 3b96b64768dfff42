"""What is printed for the mistakes that the pages show, in files that the pages include.

A test holds each file against what really is printed. One that is not there is written anew, and the test fails once.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PRINTED = Path(__file__).parent.parent / "third_party" / "printed"


def without_numbers(text: str) -> str:
    """Sizes and seconds differ from one machine to the next, and so do the places where lines are broken."""
    return " ".join(re.sub(r"\d[\d.,]*(e[-+]\d+)?", "N", text).split())


def hold(name: str, actual: str) -> None:
    """Compare with the file of that name, but for numbers and line breaks."""
    path = PRINTED / f"{name}.txt"
    actual = "".join(f"{line.rstrip()}\n" for line in actual.splitlines())
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(actual, encoding="utf-8")
        pytest.fail(f"{path} was not there and is written anew; look at it")
    held = path.read_text(encoding="utf-8")
    assert without_numbers(actual) == without_numbers(held), f"delete {path} to have it written anew"
