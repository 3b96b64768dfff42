"""Runs readers on mutated files in processes with a bound on memory, and with a watchdog that ends what hangs."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reallm.errors import ReallmError
from tests.fuzz.mutators import mutated

Read = Callable[[bytes], object]
"""Reads a file with this content; raises `ReallmError` for what a user can mend."""
Open = Callable[[Path], tuple[Sequence[bytes], Read]]
"""Makes the corpus of a reader, in an empty folder, and the function that reads."""

HANG = 5.0
"""Seconds of CPU time after which an input counts as a hang."""
WAIT = 180.0
"""Seconds after which an input that does not use the CPU counts as a hang."""
MEMORY = 1 << 30
"""Bytes of address space that an input may take in addition to what the process has."""


@dataclass
class Result:
    """What became of the inputs of a reader."""

    name: str
    n_inputs: int = 0
    n_refused: int = 0
    slowest: float = 0.0
    """Seconds of CPU time that the slowest input took, of those that ended."""
    peak_mib: float = 0.0
    """Growth of the resident memory of the process, in MiB."""
    n_hangs: int = 0
    others: dict[str, str] = field(default_factory=dict)
    """A line for each place where another exception came from -> its first input and traceback."""
    n_others: int = 0


def run(name: str, opened: Open, *, seed: int, n_inputs: int | None = None, seconds: float | None = None) -> Result:
    """Run a reader on so many inputs, or for so long. Input `i` depends on the name, the seed and `i` alone."""
    context = multiprocessing.get_context("fork")
    clock = context.Array("d", 3, lock=False)  # the input that is read, and since when: wall time, CPU time
    result, first, started = Result(name), 0, time.monotonic()
    while True:
        receiver, sender = context.Pipe(duplex=False)
        left = None if seconds is None else seconds - (time.monotonic() - started)
        clock[:] = [first, time.monotonic() + WAIT, WAIT]  # the corpus is made first
        process = context.Process(target=_work, args=(name, opened, seed, first, n_inputs, left, clock, sender))
        process.start()
        sender.close()
        has_hung = False
        while not receiver.poll(0.2):
            if time.monotonic() - clock[1] > WAIT or _cpu_seconds(process.pid) - clock[2] > HANG:
                has_hung = True
                process.kill()
                break
            if not process.is_alive() and not receiver.poll(0):
                break
        found = _received(receiver)
        process.join()
        assert not isinstance(found, str), f"the corpus of '{name}' cannot be read:\n{found}"
        if found is not None:
            return _added(result, found)
        at = int(clock[0])  # the process was killed, or has ended by itself; what it had found is lost but for a count
        result.n_inputs += at - first + 1
        if has_hung:
            result.n_hangs += 1
        else:
            result.n_others += 1
        result.others.setdefault(f"{'hang' if has_hung else f'exit {process.exitcode}'}: input {at} of seed {seed}", "")
        first = at + 1
        if (n_inputs is not None and first >= n_inputs) or (
            seconds is not None and time.monotonic() - started > seconds
        ):
            return result


def _received(receiver: Any) -> Any:
    try:
        return receiver.recv() if receiver.poll(0) else None
    except EOFError:  # the process has ended without a result
        return None


def _cpu_seconds(pid: int | None) -> float:
    """CPU time that a process has used; 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def content_of(name: str, corpus: Sequence[bytes], seed: int, i: int) -> bytes:
    """Input `i` of a reader."""
    digest = hashlib.sha256(f"{name}/{seed}/{i}".encode()).digest()
    return mutated(corpus, random.Random(digest))


def _work(
    name: str,
    opened: Open,
    seed: int,
    first: int,
    n_inputs: int | None,
    seconds: float | None,
    clock: Any,
    sender: Any,
) -> None:
    result = Result(name)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for good
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            corpus, read = opened(Path(folder))
            for content in corpus:
                read(content)  # what is not mutated is read
        except Exception:
            sender.send(traceback.format_exc())
            return
        _limit_memory()
        before, i, end = _resident(), first, None if seconds is None else time.monotonic() + seconds
        while (n_inputs is None or i < n_inputs) and (end is None or time.monotonic() < end):
            content = content_of(name, corpus, seed, i)
            clock[:] = [i, time.monotonic(), time.process_time()]
            _read_one(result, read, content, i)
            result.slowest = max(result.slowest, time.process_time() - clock[2])
            result.n_inputs += 1
            i += 1
        result.peak_mib = max(0.0, (_resident() - before) / 1024)
        clock[:] = [i, time.monotonic(), time.process_time()]
        sender.send(result)


def _read_one(result: Result, read: Read, content: bytes, i: int) -> None:
    try:
        read(content)
    except ReallmError:
        result.n_refused += 1
    except BaseException as error:  # what this is for: anything else
        result.n_others += 1
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "reallm" in frame.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
        line = f"{type(error).__name__} at {place}"
        if line not in result.others and len(result.others) < 50:
            text = "".join(traceback.format_exception(error, limit=-12))[-3000:]
            result.others[line] = f"input {i}: {content[:300]!r}\n{text}"


def _limit_memory() -> None:
    size = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _added(result: Result, found: Result) -> Result:
    return Result(
        result.name,
        result.n_inputs + found.n_inputs,
        found.n_refused,
        found.slowest,
        found.peak_mib,
        result.n_hangs,
        {**found.others, **result.others},
        result.n_others + found.n_others,
    )


def as_table(results: Sequence[Result]) -> str:
    """A table with a line for each reader."""
    lines = [f"{'reader':<20}{'inputs':>9}{'refused':>9}{'others':>8}{'hangs':>7}{'slowest':>10}{'memory':>12}"]
    lines += [
        f"{one.name:<20}{one.n_inputs:>9,}{one.n_refused:>9,}{one.n_others:>8,}{one.n_hangs:>7}"
        f"{one.slowest:>8.2f} s{one.peak_mib:>8.0f} MiB"
        for one in results
    ]
    return "\n".join(lines)


def figures(results: Sequence[Result]) -> Mapping[str, float]:
    """The figures of all readers, and their sums."""
    total: Counter[str] = Counter()
    found: dict[str, float] = {}
    for one in results:
        values = {
            "inputs": one.n_inputs,
            "refused": one.n_refused,
            "other_exceptions": one.n_others,
            "hangs": one.n_hangs,
        }
        total.update(values)
        key = one.name.replace(" ", "_")
        found |= {f"{key}_{name}": number for name, number in values.items()}
        found |= {f"{key}_slowest_s": one.slowest, f"{key}_memory_mib": one.peak_mib}
    return {**total, **found}
