"""Progress: a bar on a terminal, lines elsewhere, nothing for short work or other ranks."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from reallm.data.tokenization.progress import in_batches


def run(*, terminal: bool = False, quiet: bool = False, bar_after: float = 0, line_every: float = 0) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, quiet=quiet, width=80)
    batches = in_batches(range(5), 2, "tokenizing", console=console, bar_after=bar_after, line_every=line_every)
    assert [list(batch) for batch in batches] == [[0, 1], [2, 3], [4]]
    return output.getvalue()


def test_lines_when_there_is_no_terminal() -> None:
    assert run().splitlines() == [f"tokenizing: {n} of 5" for n in (2, 4, 5)]


def test_a_bar_on_a_terminal() -> None:
    shown = run(terminal=True)
    assert "tokenizing" in shown
    assert "5/5" in shown


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_for_short_work_or_when_quiet(terminal: bool) -> None:
    assert run(terminal=terminal, bar_after=1e9, line_every=1e9) == ""
    assert run(terminal=terminal, quiet=True) == ""


def test_a_bar_goes_when_the_work_fails() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    batches = in_batches([1, 2], 1, "tokenizing", console=console, bar_after=0)
    next(batches)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert not console._live_stack
