"""Sides of a comparison, each in a process of its own, that make one step whenever they are asked to.

Processes do not disturb one another's memory allocator, thread pool or patched classes, and each has its own peak of
memory. Only one of them works at a time.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


class Turns:
    """A side's end of the line. `wait()` before and `done(...)` after each step; the clock runs in between."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._started = 0.0
        self._baseline = 0.0
        self._ready = False

    def before_model(self) -> None:
        """Say that all is imported and the model is built next: memory is counted from here."""
        self._baseline = _memory_mb("VmRSS")

    def wait(self) -> Any:
        """Block until the next step is wanted, and return what is asked for. None: no more steps, come to an end."""
        if not self._ready:
            self._ready = True
            self._connection.send("ready")
        try:
            wanted = self._connection.recv()
        except EOFError:  # the benchmark has ended, or was stopped
            wanted = None
        _synchronize()
        self._started = time.perf_counter()
        return wanted

    def done(self, loss: float = 0.0, tokens: list[list[int]] | None = None) -> None:
        """Report the step that was asked for: of training the loss before its update, of generation the new tokens."""
        _synchronize()
        seconds = time.perf_counter() - self._started
        self._connection.send(Step(seconds, loss, self._peak_mb(), tokens))

    def _peak_mb(self) -> float:
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            return float(torch.cuda.max_memory_allocated()) / 1e6
        return _memory_mb("VmHWM") - self._baseline


@dataclass(frozen=True)
class Step:
    """What a side says of a step."""

    seconds: float
    loss: float
    peak_mb: float
    """Most memory held so far, above what the process held before it built its model."""
    tokens: list[list[int]] | None = None
    """The tokens that were generated for each prompt."""


class Worker:
    """The benchmark's end of the line: a side that runs in a process of its own.

    Args:
        name: for messages.
        run: the side, as `"module:function"`. Called with its job and its turns, it prepares, and then makes one step
            in each turn until there are no more.
        job: what the side is given; plain data.
    """

    def __init__(self, name: str, run: str, job: object) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        with tempfile.NamedTemporaryFile(prefix=f"{name}-", suffix=".log", delete=False) as log:
            self._log = Path(log.name)
        self._process = context.Process(target=_serve, args=(theirs, self._log, run, job), daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait until the model is there."""
        self._receive()

    def step(self, wanted: object = True) -> Step:
        """Make one step; `wanted` is what `Turns.wait` returns to the side."""
        self._connection.send(wanted)
        step = self._receive()
        assert isinstance(step, Step)
        return step

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(20)
        if self._process.is_alive():
            self._process.terminate()
        self._log.unlink(missing_ok=True)

    def _receive(self) -> Any:
        try:
            return self._connection.recv()
        except EOFError:
            said = self._log.read_text(encoding="utf-8", errors="replace").strip()
            raise SystemExit(f"{self.name} failed:\n{said[-4000:]}") from None


def _serve(connection: Connection, log: Path, run: str, job: object) -> None:
    """Run a side in this process, with all that it prints sent to `log`."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        module, _, function = run.partition(":")
        getattr(import_module(module), function)(job, Turns(connection))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        raise SystemExit(1) from None
    finally:
        connection.close()


def _synchronize() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


def _memory_mb(field: str) -> float:
    """`VmRSS`, resident memory, or `VmHWM`, the most of it so far, of this process, in MB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(f"no {field} in /proc/self/status")
