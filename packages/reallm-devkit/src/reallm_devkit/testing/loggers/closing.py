"""Checks of a logger's `close()`."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from reallm_devkit.testing.checks import CheckFailed, check
from reallm_devkit.testing.loggers.recording import steps
from reallm_devkit.testing.loggers.subject import LoggerSubject, run_records
from reallm_devkit.testing.scratch import scratch_folder

PATIENCE_S = 5.0
"""How long threads and processes may run on after `close()`."""


@check(needs=[steps])
def close(subject: LoggerSubject) -> str:
    """`close()` releases its files, also if nothing was logged"""
    with scratch_folder() as folder:
        with subject.open(folder / "silent"):
            pass
        subject.run(folder / "run", run_records(range(4)))
        still_open = [path for path in _open_files() if path.is_relative_to(folder)]
    if still_open:
        seen = f"'{still_open[0].name}' is still open"
        raise CheckFailed("no open file in the run folder after close()", seen, look_at=subject.at("close"))
    return "after four steps, and after none"


@check(needs=[steps])
def background(subject: LoggerSubject) -> str:
    """no thread and no process of it runs on after `close()`"""
    threads, processes = set(threading.enumerate()), _children()
    with scratch_folder() as folder:
        subject.run(folder / "run", run_records(range(4)))
        begin = time.monotonic()
        while True:
            left = [f"thread '{thread.name}'" for thread in set(threading.enumerate()) - threads]
            left += [f"process {process}" for process in _children() - processes]
            if not left or time.monotonic() - begin > PATIENCE_S:
                break
            time.sleep(0.05)
    if left:
        expected = f"nothing that runs {PATIENCE_S:g} seconds after close()"
        raise CheckFailed(expected, " and ".join(sorted(left)), look_at=subject.at("close"))
    return "nothing is left"


def _open_files() -> list[Path]:
    """Files that this process has open; empty where there is no /proc."""
    found = []
    folder = Path("/proc/self/fd")
    for entry in folder.iterdir() if folder.is_dir() else ():
        try:
            found.append(entry.readlink())
        except OSError:  # closed meanwhile, such as the one of the listing itself
            continue
    return found


def _children() -> set[int]:
    """Running child processes; empty where there is no /proc."""
    children: set[int] = set()
    for file in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        try:
            children.update(map(int, file.read_text().split()))
        except OSError:  # a thread that has ended meanwhile
            continue
    return children
