"""`reallm demo` in full length: the model answers questions that it has never seen."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console

from reallm.demo.run import run_demo


def test_most_answers_are_right_to_the_letter(tmp_path: Path) -> None:
    printed = io.StringIO()
    run_demo(tmp_path, console=Console(file=printed, width=100))
    right = re.search(r"(\d+) of 94 answers to questions it has never seen are right", printed.getvalue())
    assert right is not None
    assert int(right[1]) >= 85
