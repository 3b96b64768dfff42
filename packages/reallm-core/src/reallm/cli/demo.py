"""`reallm demo`: trains a tiny model in three minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reallm.cli.streams import outliving_readers


def demo(
    algorithm: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What to show: sft, rw (a reward model), dpo (preferences), ppo or grpo (rewards)."
        ),
    ] = "sft",
    output_dir: Annotated[
        Path, typer.Option("--output-dir", metavar="FOLDER", help="Where to put the run folder.")
    ] = Path("runs"),
    steps: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Optimizer steps; by default enough to learn the tasks.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Seed of data, weights and order.")] = 1,
) -> None:
    """Train a tiny model in three minutes and see what comes out."""
    from reallm.demo.run import run_demo

    with outliving_readers():
        result = run_demo(output_dir, steps, seed, algorithm=algorithm)
    if result.interrupted:
        raise typer.Exit(130)
