"""Starts the processes of a job on this machine, and ends them all when one of them has failed.

In the place of torchrun's agent for the case of one machine. That one gives its workers 30 s to save after Ctrl-C,
and reports a failure in a page; here a save may take its time, and the caller gets a value to make one line of.
The processes are told who they are by torchrun's environment variables, so that they do not know the difference.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

import torch.distributed as dist

from reallm.launch.failure import claim_report
from reallm.launch.job import RUN_FOLDER
from reallm.launch.rank_env import LAUNCHER_PIPE, RankEnv

LOCALHOST = "127.0.0.1"
POLL_S = 0.05
GRACE_S = 5.0
"""What the other processes have to end by themselves after the first that failed."""


@dataclass(frozen=True)
class WorkerExit:
    """A process that ended otherwise than well."""

    rank: int
    pid: int
    code: int
    """Its exit code; -9 where signal 9 has ended it."""
    reported: bool
    """Whether it, or another rank, has told the user why."""
    run_folder: str | None
    """Where the run has written, if it had begun to."""
    user_stopped: bool
    """Whether the user has ended the job, by Ctrl-C or a signal to the launcher."""

    @property
    def signal_name(self) -> str | None:
        """`SIGKILL`, if a signal has ended it."""
        return signal.Signals(-self.code).name if self.code < 0 else None


class Launcher:
    """The processes of one job on this machine.

    Args:
        command: what each of them runs.
        n: how many there are.
        environment: what they inherit.
    """

    def __init__(self, command: Sequence[str], n: int, environment: Mapping[str, str]) -> None:
        self._command, self._n, self._environment = list(command), n, dict(environment)
        # The store lives here, on a port that the system finds, and so outlives every rank.
        self._server = dist.TCPStore(  # type: ignore[attr-defined]
            LOCALHOST, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
        )
        self._store = dist.PrefixStore("reallm", self._server)  # type: ignore[attr-defined]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._requests = 0
        """How often the user has asked for the end."""

    def run(self) -> WorkerExit | None:
        """Start the processes and wait until all have ended: None if all have done so well, or else the first not to.

        SIGINT and SIGTERM are handed on to them, who save and end. If this process is killed, they end at once.
        """
        reading, writing = os.pipe()
        try:
            with self._signals_handed_on():
                for rank in range(self._n):
                    self._processes.append(self._start(rank, reading))
                os.close(reading)
                reading = -1
                return self._wait()
        finally:
            self._kill()
            for end in (reading, writing):
                if end >= 0:
                    os.close(end)

    def _start(self, rank: int, pipe: int) -> subprocess.Popen[bytes]:
        started = RankEnv(rank, self._n, rank, self._n, LOCALHOST, self._server.port, is_store_server=False)
        return subprocess.Popen(
            self._command,
            env={**self._environment, **started.to_environment(), LAUNCHER_PIPE: str(pipe)},
            pass_fds=[pipe],
            # Ctrl-C in a terminal reaches this process alone, which hands it on: once, and when all are there.
            start_new_session=True,
        )

    def _wait(self) -> WorkerExit | None:
        first: WorkerExit | None = None
        until: float | None = None
        while True:
            codes = [process.poll() for process in self._processes]
            if first is None:
                failed = [rank for rank, code in enumerate(codes) if code]
                if failed:
                    # of several that ended in the same instant, a killed one is the cause
                    rank = min(failed, key=lambda rank: (codes[rank] or 0) > 0)
                    first, until = self._ended(rank), time.monotonic() + GRACE_S
            if all(code is not None for code in codes):
                return first
            if until is None and self._requests > 1:  # a process may be deep in a call where Python hears no signal
                until = time.monotonic() + GRACE_S
            if until is not None and time.monotonic() > until:
                self._kill()
            time.sleep(POLL_S)

    def _ended(self, rank: int) -> WorkerExit:
        """Take note of how a process ended, and tell the others so, who else would tell the user that they miss it."""
        process = self._processes[rank]
        assert process.returncode is not None
        has_spoken = not claim_report(self._store, rank)
        folder = self._store.get(RUN_FOLDER).decode() if self._store.check([RUN_FOLDER]) else None
        return WorkerExit(rank, process.pid, process.returncode, has_spoken, folder, self._requests > 0)

    def _kill(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        for process in self._processes:
            process.wait()

    @contextmanager
    def _signals_handed_on(self) -> Iterator[None]:
        def on_signal(number: int, frame: FrameType | None) -> None:
            self._requests += 1
            for process in self._processes:
                if process.poll() is None:
                    process.send_signal(number)

        previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def exit_with_launcher(pipe: int) -> None:
    """Let this process end at once when the launcher is gone, even if that was killed.

    Args:
        pipe: file descriptor that is at its end then.
    """

    def watch() -> None:
        os.read(pipe, 1)
        os._exit(1)

    threading.Thread(target=watch, name="launcher", daemon=True).start()
