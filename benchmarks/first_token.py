"""Time from the start of a process to the first token that it prints, for reallm and for transformers."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from common import Ratio

HERE = Path(__file__).parent
PROMPT = "The capital of France is"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Modules are compiled once, in the round that is not counted, as those of an installed package are."""
BAR = 1.667
"""Of the wall-clock time of the script with transformers divided by that of the one with reallm."""


@dataclass(frozen=True)
class _Start:
    wall: float
    """Seconds from the start of the process until its first token can be read."""
    cpu: float
    """User and system seconds of the whole process."""


def first_token(folder: Path, rounds: int) -> dict[str, float]:
    """Start the processes in turns, print how soon each has its first token, and return ratios."""
    commands = {
        "script": [str(HERE / "first_token_reallm.py"), str(folder), PROMPT],
        "command": ["-m", "reallm", "generate", str(folder), PROMPT, "--max-new-tokens", "1"],
        "transformers": [str(HERE / "first_token_transformers.py"), str(folder), PROMPT],
    }
    text = subprocess.run(
        [sys.executable, *commands["transformers"]], capture_output=True, text=True, check=True
    ).stdout.strip()
    starts: dict[str, list[_Start]] = {name: [] for name in commands}
    names = list(commands)
    for turn in range(rounds + 1):
        shift = turn % len(names)  # no side always follows the same one
        for name in names[shift:] + names[:shift]:
            start = _start(commands[name], text)
            if turn:  # the first round fills the file cache
                starts[name].append(start)
    print(f"\nfrom the start of a process to its first token, median of {rounds} rounds, seconds")
    print(f"  {'':14s}{'wall':>7s}{'CPU':>7s}")
    for name, each in starts.items():
        print(f"  {name:14s}{_median(each, 'wall'):7.2f}{_median(each, 'cpu'):7.2f}")
    figures = {"first_token_over_transformers_bar": BAR}
    for name, figure in (("script", "first_token_over_transformers"), ("command", "first_token_of_the_command")):
        for what in ("wall", "cpu"):
            ratio = Ratio.of(*([getattr(start, what) for start in starts[side]] for side in ("transformers", name)))
            figures[figure if what == "wall" else f"{figure}_cpu"] = ratio.median
            print(f"first token, {what}: the script with transformers takes {ratio} times as long as reallm's {name}")
    return figures


def _median(starts: list[_Start], what: str) -> float:
    return statistics.median(getattr(start, what) for start in starts)


def _start(arguments: list[str], text: str) -> _Start:
    """Start a process, and wait until it has printed a text."""
    with tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        assert process.stdout is not None
        wall, printed = None, b""
        while chunk := os.read(process.stdout.fileno(), 1 << 16):
            printed += chunk
            if wall is None and text.encode() in printed.replace(PROMPT.encode(), b""):
                wall = time.perf_counter() - started
        _, status, usage = os.wait4(process.pid, 0)
        process.stdout.close()
        errors.seek(0)
        said = errors.read().decode(errors="replace")[-4000:]
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{said}")
    if wall is None:
        raise SystemExit(
            f"the sides do not compute the same: {' '.join(arguments)} did not print {text!r}:\n{printed!r}"
        )
    return _Start(wall, usage.ru_utime + usage.ru_stime)
