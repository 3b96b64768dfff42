"""Starts the processes of a job on this machine, and ends them all when one of them fails.

The launcher replaces torchrun's agent on a single machine. The agent gives its workers 30 s to save after Ctrl-C and
reports a failure at length; with this launcher a save may take as long as it needs, and the caller gets a value to
report in one line. The processes get torchrun's environment variables, so that they run alike under both.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from reallm.errors import PeerError
from reallm.launch.end_with_launcher import LAUNCHER_PIPE
from reallm.launch.failure import claim_report
from reallm.launch.job import DOING, RUN_FOLDER
from reallm.launch.open_store import open_store_file
from reallm.launch.rank_env import DEFAULT_PORT, RankEnv
from reallm.launch.signals import stop_signals
from reallm.launch.store import read_text
from reallm.launch.store_file import StoreFile

LOCALHOST = "127.0.0.1"
POLL_S = 0.05
GRACE_S = 5.0
"""Seconds that the other processes have to end by themselves once one has failed."""


@dataclass(frozen=True)
class WorkerExit:
    """The exit of a process that failed."""

    rank: int
    pid: int
    code: int
    """Exit code; -9 if signal 9 killed the process."""
    reported: bool
    """Whether this or another rank has reported the reason to the user."""
    run_folder: str | None
    """The folder of the run; None if the run had none yet."""
    doing: str | None
    """What the process was doing, such as `in call 'actor_gen'`; None if it has not said so."""
    user_stopped: bool
    """Whether the user has stopped the job, by Ctrl-C or a signal to the launcher."""

    @property
    def signal_name(self) -> str | None:
        """Name of the signal that killed the process, such as `SIGKILL`; None if none did."""
        return signal.Signals(-self.code).name if self.code < 0 else None


class Launcher:
    """The processes of one job on this machine.

    Args:
        command: command that each process runs.
        n: number of processes.
        environment: environment variables that they inherit.
    """

    def __init__(self, command: Sequence[str], n: int, environment: Mapping[str, str]) -> None:
        self._command, self._n, self._environment = list(command), n, dict(environment)
        loopback = loopback_interface()  # nobody else has to reach these processes
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            self._environment.setdefault(name, loopback)
        self._store_file = StoreFile()
        self._store = open_store_file(self._store_file.path)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._n_signals = 0
        """Number of times that the user has asked to stop."""

    def run(self) -> WorkerExit | None:
        """Start the processes and wait until all have ended; returns the first failure, or None if there is none.

        SIGINT, SIGTERM and SIGHUP are forwarded to the processes, which save and end. If this process is killed, they
        end at once.
        """
        read_end, write_end = os.pipe()
        try:
            with self._forward_signals():
                for rank in range(self._n):
                    self._processes.append(self._start(rank, read_end))
                os.close(read_end)
                read_end = -1
                return self._wait()
        finally:
            self._kill()
            self._store_file.close()
            for end in (read_end, write_end):
                if end >= 0:
                    os.close(end)

    def _start(self, rank: int, pipe: int) -> subprocess.Popen[bytes]:
        env = RankEnv(
            rank,
            self._n,
            rank,
            self._n,
            LOCALHOST,
            DEFAULT_PORT,
            is_store_server=False,
            store_file=self._store_file.path,
        )
        return subprocess.Popen(
            self._command,
            env={**self._environment, **env.to_environment(), LAUNCHER_PIPE: str(pipe)},
            pass_fds=[pipe, *self._store_file.descriptors],
            # Ctrl-C in a terminal then reaches only this process, which forwards it once, when all have started.
            start_new_session=True,
        )

    def _wait(self) -> WorkerExit | None:
        first: WorkerExit | None = None
        deadline: float | None = None
        while True:
            codes = [process.poll() for process in self._processes]
            if first is None:
                failed = [rank for rank, code in enumerate(codes) if code]
                if failed:
                    # of several that ended in the same instant, a killed one is the cause
                    rank = min(failed, key=lambda rank: (codes[rank] or 0) > 0)
                    first, deadline = self._claim_exit(rank), time.monotonic() + GRACE_S
            if all(code is not None for code in codes):
                return first
            if deadline is None and self._n_signals > 1:  # a process may be deep in C++, where no Python handler runs
                deadline = time.monotonic() + GRACE_S
            if deadline is not None and time.monotonic() > deadline:
                self._kill()
            time.sleep(POLL_S)

    def _claim_exit(self, rank: int) -> WorkerExit:
        """The exit of a process; claims its report, so that the others do not report that they lost it."""
        process = self._processes[rank]
        assert process.returncode is not None
        try:
            reported = not claim_report(self._store, rank)
            folder, doing = self._known(RUN_FOLDER), self._known(f"{DOING}/{rank}")
        except PeerError:  # a process was stopped or killed while it wrote
            reported, folder, doing = False, None, None
        return WorkerExit(rank, process.pid, process.returncode, reported, folder, doing, self._n_signals > 0)

    def _known(self, key: str) -> str | None:
        """The value of a key of the store; None if it is not set."""
        return read_text(self._store, key) if self._store.check([key]) else None

    def _kill(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
        for process in self._processes:
            process.wait()

    @contextmanager
    def _forward_signals(self) -> Iterator[None]:
        def on_signal(number: int, frame: FrameType | None) -> None:
            if number == signal.SIGHUP:
                if self._n_signals:  # a shell repeats what the terminal has sent, and nobody asks to hurry
                    return
                number = signal.SIGTERM
            self._n_signals += 1
            for process in self._processes:
                if process.poll() is None:
                    process.send_signal(number)

        previous = {number: signal.signal(number, on_signal) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def loopback_interface() -> str:
    """The name of the network interface that reaches this machine alone: `lo`, on macOS `lo0`."""
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
