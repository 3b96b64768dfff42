"""A training on many processes, from the command line: they are started here, or this is one of them."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

import typer

from reallm.errors import PeerError, ReallmError

if TYPE_CHECKING:
    from reallm.launch.job import Job
    from reallm.launch.launcher import WorkerExit
    from reallm.launch.rank_env import RankEnv

INTERRUPTED = 130
"""Exit code of what the user has ended by a signal, as shells have it."""
CONNECT_TIMEOUT = timedelta(minutes=10)
"""For the processes of a job to find each other, before the settings are read that say how long to wait later."""


class _Terminated(BaseException):
    """SIGTERM outside of the steps of a run, where it is heard at their end."""


def launch(arguments: Sequence[str], n: int) -> int:
    """Run a command line of `reallm` in `n` processes on this machine, and return the exit code of the job.

    The processes say themselves what is wrong. Of one that could not, a line says how it ended and how to go on.
    """
    from reallm.launch.launcher import Launcher

    environment = dict(os.environ)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, _n_cores() // n)))
    ended = Launcher([sys.executable, "-m", "reallm", *arguments], n, environment).run()
    if ended is None:
        return 0
    if not ended.reported and not ended.user_stopped and ended.code != INTERRUPTED:
        sys.stderr.write(f"error: {_describe_exit(ended, arguments[0])}\n")
    return ended.code if ended.code > 0 else 128 - ended.code


def _n_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_worker(name: str, started: RankEnv, work: Callable[[Job], bool]) -> NoReturn:
    """Do the work of one process of a job, and end it. Only rank 0 prints; of a failure one rank tells.

    Args:
        name: of the algorithm.
        started: which process this is.
        work: gives whether the user has ended it.
    """
    # What torch's C++ parts warn of when a process is gone, some pages of it, is said here in a line. Read at import.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    from reallm.launch.job import Job
    from reallm.launch.launcher import exit_with_launcher
    from reallm.launch.rank_env import LAUNCHER_PIPE

    if LAUNCHER_PIPE in os.environ:
        exit_with_launcher(int(os.environ[LAUNCHER_PIPE]))
    job = Job.connected(started, CONNECT_TIMEOUT)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        with _quiet() if not job.is_first else contextlib.nullcontext():
            interrupted = work(job)
    except (KeyboardInterrupt, typer.Abort):
        interrupted = True
    except _Terminated:
        _fail_if_missing(name, job)
        interrupted = True
    except (typer.Exit, SystemExit):
        raise
    except Exception as error:  # all that can go wrong ends in one place, where the ranks settle who tells
        _fail(name, job, error)
    if interrupted and job.is_first and LAUNCHER_PIPE not in os.environ:  # else our launcher says so
        sys.stderr.write("\ninterrupted\n")
    _end(INTERRUPTED if interrupted else 0)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _fail_if_missing(name: str, job: Job) -> None:
    """Fail if another rank has died: then it was `torchrun` that has sent SIGTERM, and not the user."""
    from reallm.launch.failure import describe_dead_ranks

    ended = describe_dead_ranks(job)
    if ended is not None:
        _fail(name, job, PeerError(ended))


def _fail(name: str, job: Job, error: Exception) -> NoReturn:
    from reallm.launch.failure import is_of_a_peer, message_to_print, wait_for_peers_to_read
    from reallm.launch.job import RUN_FOLDER

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to those that are about to say why they end
    of_a_peer = is_of_a_peer(error)
    expected = of_a_peer or isinstance(error, ReallmError)
    text = message_to_print(job, error)
    if text is not None and expected:
        remedy = _resume_hint(name, job.told(RUN_FOLDER)) if of_a_peer else ""
        sys.stderr.write(f"error: {text}{remedy}\n")
    elif text is not None:
        sys.stderr.write(f"rank {job.rank}:\n{''.join(traceback.format_exception(error))}")
    sys.stderr.flush()
    wait_for_peers_to_read(job)
    _end(2 if expected else 1)


def _end(code: int) -> NoReturn:
    """Leave at once: threads of torch that wait for a process that is gone would hold up an orderly end."""
    with contextlib.suppress(OSError):  # the reader of a pipe has left
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let a block print nothing and warn of nothing: what it has to say, rank 0 says as well."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield


def _describe_exit(ended: WorkerExit, name: str) -> str:
    """What to say of a process that could not say itself why it ended."""
    who = f"rank {ended.rank} (process {ended.pid})"
    if ended.signal_name is None:
        how = f"ended with exit code {ended.code} without a word"
    elif ended.signal_name == "SIGKILL":
        how = "was killed (SIGKILL), by someone or by the system when memory ran out"
    else:
        how = f"was ended by {ended.signal_name}"
    return f"{who} {how}{_resume_hint(name, ended.run_folder)}"


def _resume_hint(name: str, run_folder: str | None) -> str:
    """How a run goes on that has ended early, to end a line with."""
    from reallm.experiments.runs.folder import RunFolder

    if run_folder is None:
        return ""
    if not RunFolder(Path(run_folder)).saved_steps():
        return "; nothing was saved yet"
    return f"; to go on: reallm {name} {shlex.quote(f'resume={run_folder}')}"
