"""Training with many processes from the command line: this process starts them, or is one of them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from reallm.new_python import module_command
from reallm.printable import printable_line

if TYPE_CHECKING:
    from reallm.launch.job import Job
    from reallm.launch.launcher import WorkerExit
    from reallm.launch.rank_env import RankEnv


def launch(arguments: Sequence[str], n: int) -> int:
    """Run a command line of `reallm` in `n` processes on this machine, and return the exit code of the job.

    The processes report their errors themselves. If one cannot, a line reports how it ended and how to resume.
    """
    from reallm.launch.cores import n_cores
    from reallm.launch.launcher import Launcher
    from reallm.launch.signals import INTERRUPTED

    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, n_cores() // n)))
    failure = Launcher([*module_command("reallm"), *arguments], n, environment).run()
    if failure is None:
        return 0
    if not failure.reported and not failure.user_stopped and failure.code != INTERRUPTED:
        sys.stderr.write(f"error: {printable_line(_describe_exit(failure, arguments[0]))}\n")
    return failure.code if failure.code > 0 else 128 - failure.code


def run_worker(algorithm: str, env: RankEnv, work: Callable[[Job], bool]) -> NoReturn:
    """Do the work of one process of a job, and end it; `work` returns whether the user has stopped it."""
    # torch's C++ code warns at length when a process has ended, which we report in one line. Read when torch is
    # imported.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from reallm.launch import worker

    worker.run_worker(env, work, partial(_resume_hint, algorithm))


def _describe_exit(failure: WorkerExit, algorithm: str) -> str:
    """Describe the end of a process that could not report it itself."""
    who = f"rank {failure.rank} (process {failure.pid})"
    where = f" {failure.doing}" if failure.doing else ""
    if failure.signal_name is None:
        how = f"ended{where} with exit code {failure.code} without a message"
    elif failure.signal_name == "SIGKILL":
        how = f"was killed (SIGKILL){where}: by someone, or by the system because memory ran out"
    else:
        how = f"was ended by {failure.signal_name}{where}"
    return f"{who} {how}{_resume_hint(algorithm, failure.run_folder)}"


def _resume_hint(algorithm: str, run_folder: str | None) -> str:
    """A hint how to resume a run that has ended early, as the end of a line; empty if there is no run yet."""
    from reallm.experiments.runs.folder import RunFolder

    if run_folder is None:
        return ""
    folder = RunFolder(Path(run_folder))
    if not folder.saved_steps():
        return "; nothing was saved yet"
    return f"; to resume: {folder.resume_command(algorithm)}"
