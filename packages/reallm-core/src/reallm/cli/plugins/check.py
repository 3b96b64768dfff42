"""`reallm plugins check`: whether something that a plugin offers keeps its promises."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from reallm.errors import ConfigError, did_you_mean
from reallm.plugins import registry
from reallm.plugins.kinds import KINDS
from reallm_devkit.testing.kit import Kit
from reallm_devkit.testing.report import Report, Result

if TYPE_CHECKING:
    from reallm.plugins.loader import Offer


def check_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What a plugin offers: a dataset, a logger, ...")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="What it needs, as in a run.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help="Which, if the name is offered as several kinds.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="PATH", help="A real checkpoint, for a model family.")
    ] = None,
) -> None:
    """Check that something a plugin offers keeps the promises that reallm relies on.

    The exit code is 0 if no check failed, 1 if one did, 2 if nothing could be checked.

    \b
      reallm plugins check tensorboard
      reallm plugins check my-dataset dataset.train_path=rows.jsonl
      reallm plugins check my-dataset dataset.train_path=a.jsonl tokenizer=./model
    """
    offer = _offer(name, kind)

    from reallm_devkit.testing.kits import kit_class

    kit = kit_class(offer.kind).from_command(offer, arguments or [], checkpoint)

    page = None if as_json else Page(kit)
    with contextlib.redirect_stdout(sys.stderr):  # what the plugin prints is not the report
        report = kit.run() if page is None else kit.run(page.line)
    if page is None:
        typer.echo(json.dumps(report.as_json(), indent=2))
    else:
        page.end(report)
    if not report.passed:
        raise typer.Exit(1)


def _offer(name: str, kind: str | None) -> Offer:
    if kind is not None:
        if kind not in KINDS:
            hint = did_you_mean(kind, KINDS) or f"; kinds: {', '.join(KINDS)}"
            raise ConfigError(f"--kind {kind}: there is no such kind of plugin{hint}")
        return registry.registry().offer(kind, name)
    offers = registry.registry().anything(name)
    if len(offers) > 1:
        kinds = " and of ".join(f"the {offer.kind}" for offer in offers)
        raise ConfigError(f"'{name}' is the name of {kinds}; say which is meant: --kind {offers[0].kind}")
    return offers[0]


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
