"""Runs with the real packages, in processes of their own: both keep state in the process and in the home folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("part_of_a_run.py")

PartOfARun = Callable[..., str]
"""`part(logger, run_dir, first, last, resume_step=None, **environment)` gives what the process printed."""


@pytest.fixture
def part_of_a_run(tmp_path: Path) -> PartOfARun:
    home = tmp_path / "home"
    home.mkdir()

    def part(
        name: str, run_dir: Path, first: int, last: int, resume_step: int | None = None, **environment: str
    ) -> str:
        run_dir.mkdir(exist_ok=True)
        arguments = [name, run_dir, first, last, *([] if resume_step is None else [resume_step])]
        outer = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "TRACKIO_", "HF_"))}
        done = subprocess.run(
            [sys.executable, PROGRAM, *map(str, arguments)],
            env={**outer, "HOME": str(home), "HF_HUB_OFFLINE": "1", **environment},
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    return part
