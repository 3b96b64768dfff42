"""`reallm plugins check`: checks something that a plugin offers and prints the report."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reallm.errors import ConfigError, did_you_mean
from reallm.plugins import registry
from reallm.plugins.kinds import KINDS
from reallm_devkit.testing.kit import Kit
from reallm_devkit.testing.kits import kit_class
from reallm_devkit.testing.report import Report, Result

if TYPE_CHECKING:
    from reallm.plugins.loader import Offer

COLORS = {"passed": "green", "failed": "red", "skipped": "yellow"}


def check_plugin(
    name: str, arguments: Sequence[str], *, kind: str | None, as_json: bool, checkpoint: Path | None
) -> bool:
    """Run the kit, print its report to standard output, and return whether no check failed.

    Raises:
        ReallmError: if nothing can be checked: an unknown name, or a wrong or missing argument.
    """
    found = [
        _check_offer(offer, arguments, as_json=as_json, checkpoint=checkpoint)
        for offer in _find_offers(name, kind, is_plain=not arguments and not as_json and checkpoint is None)
    ]
    return all(found)


def _check_offer(offer: Offer, arguments: Sequence[str], *, as_json: bool, checkpoint: Path | None) -> bool:
    kit = kit_class(offer.kind).from_command(offer, arguments, checkpoint)
    printer = None if as_json else ReportPrinter(kit)
    with contextlib.redirect_stdout(sys.stderr):  # the plugin may print, which must not mix with the report
        report = kit.run() if printer is None else kit.run(printer.print_result)
    if printer is None:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        printer.print_summary(report)
    return report.passed


def _find_offers(name: str, kind: str | None, *, is_plain: bool) -> list[Offer]:
    """What has the name; several kinds only if nothing is said that is for one of them."""
    if kind is not None:
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS) or f"; kinds: {', '.join(KINDS)}"
            raise ConfigError(f"--kind {kind}: there is no such kind of plugin{hint}")
        return [registry.registry().offer(kind, name)]
    offers = registry.registry().offers_named(name)
    if len(offers) > 1 and not is_plain:
        kinds = " and of ".join(f"the {offer.kind}" for offer in offers)
        raise ConfigError(f"'{name}' is the name of {kinds}; say which is meant: --kind {offers[0].kind}")
    return offers


class ReportPrinter:
    """Prints a report while its checks run, to what is standard output when this is made.

    The title comes with the first result, so that nothing is printed if the kit cannot run.
    """

    def __init__(self, kit: Kit[Any]) -> None:
        self._console = Console(file=sys.stdout, highlight=False)
        labels = (f"{check.name}[{case}]" if case else check.name for case in kit.cases() for check in kit.checks)
        self._label_width = max(map(len, labels))
        provider = kit.provided_by()
        self._title = Text.assemble((f"{kit.kind} {kit.title()}", "bold"), f" of {provider}" if provider else "", "\n")

    def print_result(self, result: Result) -> None:
        """Print a result as one line: cut to the width of a terminal, whole elsewhere."""
        if self._title:
            self._console.print(self._title, soft_wrap=True)
            self._title = Text()
        text = Text.assemble(
            (f"{result.status:<7}", COLORS[result.status]),
            f"  {result.label:<{self._label_width}}  ",
            (result.detail, "dim"),
        )
        if self._console.is_terminal:
            self._console.print(text, no_wrap=True, overflow="ellipsis")
        else:
            self._console.print(text, soft_wrap=True)

    def print_summary(self, report: Report) -> None:
        """Print the failures in full, and the counts."""
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
