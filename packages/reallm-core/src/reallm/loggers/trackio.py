"""Logs metrics to trackio: `trackio show --project reallm`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trackio

from reallm.atomic_files import atomic_write


class TrackioLogger:
    """A trackio run with the name and configuration of this run, in trackio's database on this machine.

    Its project is `TRACKIO_PROJECT`, or `reallm`; trackio's other environment variables apply (`TRACKIO_DIR`,
    `TRACKIO_SPACE_ID`, `TRACKIO_SERVER_URL`, ...). A run that is resumed in the same folder continues the same trackio
    run, whose id is in `trackio-id.txt`. trackio cannot delete single steps: steps that are trained again appear twice.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        file = run_dir / "trackio-id.txt"
        known = file.read_text(encoding="utf-8").strip() if file.exists() else None
        self._run = _start(run_dir, config, resume="never" if known is None else "allow")
        if known not in (None, self._run.id):  # trackio finds runs by name: this is a newer run, of another folder
            self._run = _start(run_dir, config, resume="never")
        with atomic_write(file) as temporary:
            temporary.write_text(self._run.id + "\n", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add a row of values, which is written in the background."""
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        """Wait until everything is written."""
        trackio.finish()


def _start(run_dir: Path, config: Mapping[str, Any], *, resume: str) -> Any:
    """Start or continue the trackio run; trackio has one at a time, and ends the previous one."""
    return trackio.init(
        project=os.environ.get("TRACKIO_PROJECT") or "reallm",
        name=config.get("name") or run_dir.name,
        config=dict(config),
        resume=resume,
        embed=False,
    )
