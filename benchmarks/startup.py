"""Start-up: process time of `reallm --help` and of its nearest relatives, each in a process of its own.

Process time is user and system time together, so a busy machine disturbs it little. The bar is 0.25 s for
`reallm --help`; `python -c pass` and `import torch` are measured in turn with it as a floor and a ceiling.

    python benchmarks/startup.py --quick --json figures.json
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

from common import parser, write_json

BAR_S = 0.25
COMMANDS = {
    "python": ["-c", "pass"],
    "help": ["-m", "reallm", "--help"],
    "plugins": ["-m", "reallm", "plugins"],
    "sft_help": ["-m", "reallm", "sft", "--help"],
    "torch": ["-c", "import torch"],
}


def process_time(arguments: list[str]) -> float:
    """User and system seconds of a Python process."""
    process = subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert process.stderr is not None
    message = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.stderr.close()
    if status:
        raise SystemExit(f"{' '.join(arguments)} failed: {message.decode(errors='replace')}")
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure, print a table, and write the figures if asked to."""
    arguments = parser(__doc__.partition("\n")[0]).parse_args()
    rounds = 7 if arguments.quick else 31
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for turn in range(rounds + 1):
        for name, command in COMMANDS.items():
            spent = process_time(command)
            if turn:  # the first round fills the file cache
                seconds[name].append(spent)
    print(f"process time in seconds, median of {rounds} rounds (least to most)")
    for name, values in seconds.items():
        what = " ".join(["python", *COMMANDS[name]])
        print(f"  {what:32s} {statistics.median(values):6.3f}  ({min(values):.3f} to {max(values):.3f})")
    figure = BAR_S / statistics.median(seconds["help"])
    print(f"reallm --help: {figure:.2f} times as fast as the bar of {BAR_S} s")
    write_json(arguments.json, {"help_speedup_over_bar": figure, "help_speedup_over_bar_bar": 1.0})


if __name__ == "__main__":
    main()
