"""Metrics to Weights & Biases."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from reallm.atomic_files import atomic_write


class WandbLogger:
    """A W&B run with the name and the configuration of ours.

    Its project is `WANDB_PROJECT`, or `reallm`; all else is as wandb's environment variables and files say
    (`WANDB_ENTITY`, `WANDB_MODE`, `WANDB_BASE_URL`, ...). Local files lie in `wandb/` in the run folder, and with them
    the run's id: a run that continues in the same folder continues the same W&B run. W&B cannot forget single steps:
    those that are trained a second time are there twice. Neither code nor what is printed is uploaded.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        run_id, known = _run_id(run_dir / "wandb" / "id.txt")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "reallm",
            name=config.get("name") or run_dir.name,
            config=dict(config),
            dir=str(run_dir),
            id=run_id,
            resume="allow" if known else None,
            reinit="create_new",  # a run that the caller's own code has open is neither used nor ended
            save_code=False,
            settings=wandb.Settings(console="off"),
        )
        # W&B's own steps only grow, also over a continued run, and it ignores what is logged at an earlier one. Ours
        # go back to the last saved state, so they are a value of their own, which charts take for the x axis.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row of values; they are sent in the background."""
        self._run.log({**metrics, "step": step})

    def close(self) -> None:
        """Wait until all is sent."""
        self._run.finish()


def _run_id(file: Path) -> tuple[str, bool]:
    """The id of the W&B run, and whether it is that of an earlier part of this run; a new one is written down."""
    if file.exists():
        return file.read_text(encoding="utf-8").strip(), True
    run_id = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(8)  # sweep agents set it
    with atomic_write(file) as temporary:
        temporary.write_text(run_id + "\n", encoding="utf-8")
    return run_id, False
