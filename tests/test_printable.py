"""Text that cannot drive a terminal."""

from __future__ import annotations

import json
import unicodedata

import pytest

from reallm.printable import json_line, printable, printable_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("over\rwritten\x08", r"over\rwritten\x08"),
        ("abc\u202ecba", r"abc\u202ecba"),
        ("a\u2028b\x85", r"a\u2028b\x85"),
        ("half \ud83d", r"half \ud83d"),
        ("👩\u200d👩\ufe0f é 文 \xa0\u200f…", "👩\u200d👩\ufe0f é 文 \xa0\u200f…"),
    ],
)
def test_what_drives_a_terminal_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_line_stays_one_line() -> None:
    line = printable_line("a\tb\nc\x1b\r\u2028\x85")
    assert line == r"a\tb\nc\x1b\r\u2028\x85"
    assert line.splitlines() == [line]


def test_all_control_characters_are_escaped() -> None:
    controls = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cc", "Cs", "Zl", "Zp")]
    assert [char for char in controls if printable(char) == char] == ["\t", "\n"]


def test_a_line_of_json_has_only_escapes_for_them_and_is_one_line() -> None:
    value = {"é": "文\n\x1b\x9b\x7f\u2028\u202e\ud83d", "n": [1, None]}
    line = json_line(value)
    assert line == '{"é": "文\\n\\u001b\\u009b\\u007f\\u2028\\u202e\\ud83d", "n": [1, null]}\n'
    assert json.loads(line) == value
