"""`reallm plugins check`: whether something that a plugin offers keeps its promises."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reallm.errors import ConfigError, did_you_mean
from reallm.plugins import registry
from reallm.plugins.kinds import KINDS

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

    from reallm.testing.kits import kit_class

    kit = kit_class(offer.kind).from_command(offer, arguments or [], checkpoint)

    from reallm.cli.plugins_check_page import Page

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
