"""`reallm compare`: the losses or rewards, results and settings of several runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[str] | None, typer.Argument(metavar="RUN RUN", help="Names in --dir, or paths.")] = None,
    folder: Annotated[Path, typer.Option("--dir", metavar="FOLDER", help="Folder that holds run folders.")] = Path(
        "runs"
    ),
    by: Annotated[str, typer.Option("--by", metavar="WHAT", help="Axis: steps, tokens or epochs.")] = "steps",
    output: Annotated[
        Path | None,
        typer.Option("--output", metavar="FILE", help="Picture to write; by default compare.png in --dir."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; a picture only with --output.")] = False,
) -> None:
    """Compare runs: their loss curves, final and best metrics, and the settings that differ.

    \b
      reallm compare first-try second-try
      reallm compare first-try second-try third-try --by tokens
    """
    from reallm.errors import ConfigError
    from reallm.experiments.runs.comparison import compare as compare_runs
    from reallm.experiments.runs.info import find_run

    if output is not None and output.suffix != ".png":
        raise ConfigError(f"--output {output}: the name must end in .png")
    comparison = compare_runs([find_run(name, folder) for name in runs or []], by)

    from reallm.cli.compare_view import print_comparison, save_picture, to_json

    if as_json:
        typer.echo(json.dumps(to_json(comparison), indent=2))
    else:
        print_comparison(comparison)
        if output is None and comparison.plotted:
            output = (folder if folder.is_dir() else Path()) / "compare.png"
    if output is not None:
        save_picture(comparison, output)
        if not as_json:
            typer.echo(f"\nas a picture: {output}")
