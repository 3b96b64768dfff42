"""Progress: a bar on a terminal, lines elsewhere, nothing for short work or other ranks."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from reallm.data.tokenization.progress import RowProgress


def run(
    *,
    terminal: bool = False,
    quiet: bool = False,
    bar_after: float = 0,
    line_every: float = 0,
    total: int | None = 5,
) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, quiet=quiet, width=100)
    with RowProgress(
        "tokenizing", lambda: total, console=console, bar_after=bar_after, line_every=line_every
    ) as progress:
        for n in (2, 2, 1):
            progress.advance(n)
    return output.getvalue()


def test_lines_with_rate_and_remaining_time_when_there_is_no_terminal() -> None:
    lines = run().splitlines()
    assert [line.split(", ")[0] for line in lines] == [f"tokenizing: {n} of 5 rows" for n in (2, 4, 5)]
    assert all(re.fullmatch(r".* rows, [\d,]+ rows/s, 0:00:00 remaining", line) for line in lines)


def test_lines_when_the_number_of_rows_is_not_known() -> None:
    lines = run(total=None).splitlines()
    assert [line.split(", ")[0] for line in lines] == [f"tokenizing: {n} rows" for n in (2, 4, 5)]


def test_more_rows_than_were_expected_do_not_take_negative_time() -> None:
    assert "5 of 3 rows" in run(total=3)
    assert "-" not in run(total=3)


def test_a_bar_on_a_terminal() -> None:
    shown = run(terminal=True)
    assert "tokenizing" in shown
    assert "5/5" in shown
    assert "rows/s" in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_for_short_work_or_when_quiet(terminal: bool) -> None:
    assert run(terminal=terminal, bar_after=1e9, line_every=1e9) == ""
    assert run(terminal=terminal, quiet=True) == ""


def test_a_bar_goes_when_the_work_fails() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)

    def fail() -> None:
        with RowProgress("tokenizing", lambda: 2, console=console, bar_after=0) as progress:
            progress.advance(1)
            raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        fail()
    assert not console._live_stack
