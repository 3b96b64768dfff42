"""`reallm push`: upload the checkpoint of a run to the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run in --dir, or its path.")],
    repo: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="Repository; created, as private, if there is none.")
    ],
    folder: Annotated[Path, typer.Option("--dir", metavar="FOLDER", help="Folder that holds run folders.")] = Path(
        "runs"
    ),
) -> None:
    """Upload the best checkpoint of a run, or the newest, to the Hugging Face hub.

    \b
      reallm push runs/my-run my-org/my-model
    """
    from reallm.experiments.run.hub import check_hub, push_run
    from reallm.experiments.runs.info import find_run

    path = find_run(run, folder).path
    check_hub(repo)
    typer.echo(f"pushed to {push_run(path, repo)}")
