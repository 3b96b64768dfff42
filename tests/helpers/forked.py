"""Python processes that are forked from a server that has imported torch and the core: they start at once.

`ForkedPython` stands for `python -m reallm ...` or `python -c PROGRAM ...` where a test is about what the command does,
not about how Python starts it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.helpers.ranks import PRELOADED
from workspace import ROOT


class ForkedPython:
    """A process with the methods of `subprocess.Popen` that tests use.

    Args:
        arguments: those of Python: `-m module ...` or `-c program ...`.
        environment: all its environment variables.
        out: file for standard output.
        err: file for standard error.
        folder: the folder it runs in.
        preloaded: what the server imports; the first process of a test run decides it.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        out: Path,
        err: Path,
        folder: Path | None = None,
        preloaded: Sequence[str] = PRELOADED,
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preloaded))
        started = (list(arguments), dict(environment), str(out), str(err), str(folder or Path.cwd()))
        self._process = context.Process(target=_run, args=started)
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; returns the exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("forked Python", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()


def _run(arguments: list[str], environment: dict[str, str], out: str, err: str, folder: str) -> None:
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    ours = {str(ROOT), str(ROOT / "tests"), ""}
    path = [one for one in environment.get("PYTHONPATH", "").split(os.pathsep) if one]
    sys.path[:] = [folder, *path, *(one for one in sys.path if one not in ours and one not in path)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _set_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    option, subject, *rest = arguments
    sys.argv[:] = [option, *rest]
    if option == "-m":
        runpy.run_module(subject, run_name="__main__", alter_sys=True)
        return
    assert option == "-c"
    main: Any = types.ModuleType("__main__")
    sys.modules["__main__"] = main
    exec(compile(subject, "<string>", "exec"), main.__dict__)


def _set_threads(n: int) -> None:
    import torch

    torch.set_num_threads(n)
