"""Arguments of `reallm plugins check`, which is implemented in `reallm_devkit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reallm.plugins.devkit import import_devkit


def check_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What a plugin offers: a dataset, a logger, ...")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="key=value", help="Its keys, as in a run.")] = None,
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help="Its kind, if several kinds have this name.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    checkpoint: Annotated[
        Path | None, typer.Option("--checkpoint", metavar="PATH", help="A real checkpoint, for a model family.")
    ] = None,
) -> None:
    """Check that something a plugin offers keeps the promises that reallm relies on; needs reallm-devkit.

    The exit code is 0 if no check failed, 1 if one did, 2 if nothing could be checked.

    \b
      reallm plugins check tensorboard
      reallm plugins check my-dataset dataset.train_path=rows.jsonl
      reallm plugins check my-dataset dataset.train_path=a.jsonl tokenizer=./model
    """
    command = import_devkit("reallm_devkit.cli.check", "reallm plugins check")
    if not command.check_plugin(name, arguments or [], kind=kind, as_json=as_json, checkpoint=checkpoint):
        raise typer.Exit(1)
