"""Logs metrics to Weights & Biases."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb

from reallm.atomic_files import atomic_write


class WandbLogger:
    """A W&B run with the name and configuration of this run.

    Its project is `WANDB_PROJECT`, or `reallm`; wandb's other environment variables and files apply (`WANDB_ENTITY`,
    `WANDB_MODE`, `WANDB_BASE_URL`, ...). Local files and the run's id are in `wandb/` in the run folder: a run that is
    resumed in the same folder continues the same W&B run. W&B cannot delete single steps: steps that are trained again
    appear twice. Neither code nor console output is uploaded.
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
            reinit="create_new",  # a run that the caller has open is neither used nor ended
            save_code=False,
            settings=wandb.Settings(console="off"),
        )
        # W&B's steps never decrease, even in a resumed run, and it ignores values logged at an earlier step. Our steps
        # go back to the last saved state, so they are logged as a metric, which charts use as the x axis.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row of values; they are sent in the background."""
        self._run.log({**metrics, "step": step})

    def close(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()


def _run_id(file: Path) -> tuple[str, bool]:
    """The id of the W&B run, and whether a run is resumed with it; a new id is written to `file`."""
    if file.exists():
        return file.read_text(encoding="utf-8").strip(), True
    run_id = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(8)  # sweep agents set it
    with atomic_write(file) as temporary:
        temporary.write_text(run_id + "\n", encoding="utf-8")
    return run_id, False
