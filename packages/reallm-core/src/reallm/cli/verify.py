"""`reallm verify`: check what a run has saved, file by file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A run, or one checkpoint.")],
) -> None:
    """Compare every file of a run's checkpoints, or of one checkpoint, with the checksum it was saved with.

    \b
      reallm verify runs/my-run
      reallm verify runs/my-run/checkpoints/step-000100
    """
    from reallm.cli.tables import size
    from reallm.errors import CheckpointError, counted, quoted
    from reallm.experiments.checkpointing.verify import checkpoints_of
    from reallm.experiments.checkpointing.verify import verify as verify_all
    from reallm.printable import printable_line

    paths = checkpoints_of(folder)
    n_damaged = 0
    for found in verify_all(paths):
        if found.problem is not None or found.compared is None:
            n_damaged += 1
            typer.echo(printable_line(f"{found.folder.name}: damaged: {found.problem}"))
            continue
        n_bytes, without = found.compared.n_bytes, found.compared.without
        text = f"{size(n_bytes)}, all as saved" if n_bytes else "no checksums; it can be read"
        if n_bytes and without:
            names = quoted([path.name for path in without])
            text = f"{size(n_bytes)} as saved, but no checksums in {names}; what is there can be read"
        state = "" if found.step is None else f", with the training state of step {found.step}"
        typer.echo(printable_line(f"{found.folder.name}: {text}{state}"))
    if n_damaged:
        raise CheckpointError(f"{folder}: {n_damaged} of {counted(len(paths), 'checkpoint')} damaged, as said above")
