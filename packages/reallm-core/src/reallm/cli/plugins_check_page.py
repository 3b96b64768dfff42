"""What `reallm plugins check` shows: a line for each check as soon as it is made, then what failed."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reallm.testing.kit import Kit
from reallm.testing.report import Report, Result

COLORS = {"passed": "green", "failed": "red", "skipped": "yellow"}


class Page:
    """The page of one run of a kit, printed to the standard output there is now; its head with the first line."""

    def __init__(self, kit: Kit[Any]) -> None:
        self._console = Console(file=sys.stdout, highlight=False)
        labels = (f"{check.name}[{case}]" if case else check.name for case in kit.cases() for check in kit.checks)
        self._width = max(map(len, labels))
        by = kit.provided_by()
        self._head = Text.assemble((f"{kit.kind} {kit.title()}", "bold"), f" of {by}" if by else "", "\n")

    def line(self, result: Result) -> None:
        """One line; in a terminal no longer than that is wide, elsewhere whole."""
        if self._head:
            self._console.print(self._head, soft_wrap=True)
            self._head = Text()
        text = Text.assemble(
            (f"{result.status:<7}", COLORS[result.status]), f"  {result.label:<{self._width}}  ", (result.detail, "dim")
        )
        if self._console.is_terminal:
            self._console.print(text, no_wrap=True, overflow="ellipsis")
        else:
            self._console.print(text, soft_wrap=True)

    def end(self, report: Report) -> None:
        """The failures and the sum."""
        for result in report.failed:
            assert result.failure is not None
            self._console.print()
            self._console.print(Text.assemble((result.label, "bold red"), ": ", result.promise), soft_wrap=True)
            grid = Table.grid(padding=(0, 2, 0, 0))
            for label, text in result.failure.lines():
                grid.add_row(Text(f"  {label}", style="cyan"), Text(text, overflow="fold"))
            self._console.print(grid)
        self._console.print()
        self._console.print(Text(report.summary, style="bold red" if report.failed else "bold green"))
