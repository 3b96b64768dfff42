"""Arguments of `reallm plugins new`, which is implemented in `reallm_devkit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reallm.plugins.devkit import import_devkit


def new_plugin(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="dataset, family, algorithm, logger, callback or reward.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What it offers: my-data.")],
    folder: Annotated[
        Path, typer.Option("--dir", metavar="PATH", help="Where to put the package's folder.", show_default="here")
    ] = Path(),
    model_type: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="For a family: the model_type in its config.json.", show_default="llama"),
    ] = None,
) -> None:
    """Write a small package with a plugin that works, and with tests that pass; needs reallm-devkit.

    A family begins with what transformers tells of its model type; what is still missing is marked.

    \b
      reallm plugins new dataset my-data
      reallm plugins new logger my-log --dir ~/plugins
      reallm plugins new family my-model --model-type qwen3
    """
    command = import_devkit("reallm_devkit.cli.new", "reallm plugins new")
    command.new_plugin(kind, name, folder=folder, model_type=model_type)
