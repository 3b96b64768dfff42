"""`reallm compare`: the losses, results and settings of several runs side by side."""

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
        typer.Option("--output", metavar="FILE", help="Picture to write; compare.png in --dir if left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; a picture only with --output.")] = False,
) -> None:
    """Compare runs: their loss curves, final and best metrics, and the settings that differ.

    \b
      reallm compare first-try second-try
      reallm compare first-try second-try third-try --by tokens
    """
    from reallm.errors import ConfigError
    from reallm.experiments.runs import comparison
    from reallm.experiments.runs.info import find_run

    if output is not None and output.suffix != ".png":
        raise ConfigError(f"--output {output}: the name must end in .png")
    found = comparison.compare([find_run(name, folder) for name in runs or []], by)

    from reallm.cli import compare_view as compare_page

    if as_json:
        typer.echo(json.dumps(compare_page.as_json(found), indent=2))
    else:
        compare_page.show(found)
        if output is None and found.losses:
            output = (folder if folder.is_dir() else Path()) / "compare.png"
    if output is not None:
        compare_page.save_picture(found, output)
        if not as_json:
            typer.echo(f"\nas a picture: {output}")
