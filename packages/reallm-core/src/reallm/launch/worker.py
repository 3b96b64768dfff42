"""A process of a job: connects to the others, does its work, and ends so that one rank reports a failure."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import NoReturn

from reallm.errors import PeerError, ReallmError
from reallm.launch.end_with_launcher import LAUNCHER_PIPE
from reallm.launch.failure import describe_dead_ranks, is_peer_error, message_to_print, wait_for_peers_to_read
from reallm.launch.job import RUN_FOLDER, Job
from reallm.launch.rank_env import RankEnv
from reallm.launch.signals import INTERRUPTED
from reallm.machine_errors import as_machine_error
from reallm.notices import silenced_notices
from reallm.printable import printable_line

CONNECT_TIMEOUT = timedelta(minutes=10)
"""Timeout for finding the other processes, before the settings with later timeouts are read."""
RAISE_AGAIN_S = 5.0
"""Seconds after SIGTERM until it is raised again, if the process has not ended; torchrun waits 30 s before it kills."""


class _Terminated(BaseException):
    """Raised by SIGTERM outside of the steps of a run, which handle it themselves (`signals.stop_requests`)."""


def run_worker(env: RankEnv, work: Callable[[Job], bool], resume_hint: Callable[[str | None], str]) -> NoReturn:
    """Do the work of this process, and end it. Only rank 0 prints; one rank reports a failure.

    The exit code is 0, 130 if the user has stopped the run, 2 after an error that a user can fix or that is
    the machine's, 1 after any other.

    Args:
        env: this process in its job.
        work: function that does the work, and returns whether the user has stopped it.
        resume_hint: function from the folder of the run, or None, to a hint how to resume it, as the end of a line.
    """
    job = Job.connect(env, CONNECT_TIMEOUT)
    signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        with nullcontext() if job.is_rank0 else _silenced():
            interrupted = work(job)
    except KeyboardInterrupt:
        interrupted = True
    except _Terminated:
        signal.setitimer(signal.ITIMER_REAL, 0)
        dead_ranks = describe_dead_ranks(job)
        if dead_ranks is not None:  # then torchrun sent SIGTERM, not the user
            _fail(job, PeerError(dead_ranks), resume_hint)
        interrupted = True
    except Exception as error:  # whatever the error, the ranks agree on one that reports it
        _fail(job, as_machine_error(error), resume_hint)
    if interrupted and job.is_rank0 and LAUNCHER_PIPE not in os.environ:  # otherwise our launcher prints this
        sys.stderr.write("\ninterrupted\n")
    _exit(INTERRUPTED if interrupted else 0)


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    # Python discards an exception that is raised in a callback of its own, as in an import: then raise it again later
    signal.signal(signal.SIGALRM, _on_sigterm)
    signal.setitimer(signal.ITIMER_REAL, RAISE_AGAIN_S)
    raise _Terminated


def _fail(job: Job, error: Exception, resume_hint: Callable[[str | None], str]) -> NoReturn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to ranks that are about to report
    signal.setitimer(signal.ITIMER_REAL, 0)
    is_of_peer = is_peer_error(error)
    is_expected = is_of_peer or isinstance(error, ReallmError)
    text = message_to_print(job, error)
    if text is not None and is_expected:
        hint = resume_hint(job.get(RUN_FOLDER)) if is_of_peer else ""
        sys.stderr.write(f"error: {printable_line(text + hint)}\n")
    elif text is not None:
        sys.stderr.write(f"rank {job.rank}:\n{''.join(traceback.format_exception(error))}")
    sys.stderr.flush()
    wait_for_peers_to_read(job)
    _exit(2 if is_expected else 1)


def _exit(code: int) -> NoReturn:
    """End at once: torch's threads that wait for an ended process would delay an orderly exit."""
    with suppress(OSError):  # the reader of a pipe may have ended
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


@contextmanager
def _silenced() -> Iterator[None]:
    """Context that discards output, warnings and notices; rank 0 prints the same."""
    with (
        silenced_notices(),
        Path(os.devnull).open("w", encoding="utf-8") as devnull,
        redirect_stdout(devnull),
        warnings.catch_warnings(),
    ):
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        yield
