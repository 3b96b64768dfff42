"""What the benchmarks share: arguments, interleaved timing, figures as ratios, JSON."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


def parser(description: str) -> argparse.ArgumentParser:
    """A parser with the options every benchmark has."""
    arguments = argparse.ArgumentParser(description=description)
    arguments.add_argument("--quick", action="store_true", help="fewer rounds; under 8 minutes on 2 cores")
    arguments.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as one flat JSON object")
    return arguments


def interleave(systems: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each system in each round; every round runs all of them once, in turn.

    A machine that slows down slows all of them: only ratios within a round mean anything.
    """
    for _ in range(warm_up):
        for run in systems.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    names = list(systems)
    for turn in range(rounds):
        shift = turn % len(names)  # no system always follows the same one
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            systems[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles of a ratio over rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> Ratio:
        """Of two series, round by round."""
        each = sorted(a / b for a, b in zip(above, below, strict=True))
        low, _, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else (each[0],) * 3
        return cls(statistics.median(each), low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def write_json(path: Path | None, figures: Mapping[str, float]) -> None:
    """Write one flat object of figures, rounded to four significant digits."""
    if path is not None:
        rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
        path.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")


def machine() -> str:
    """The processor and its cores, in words."""
    import torch

    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return f"{model}, {torch.get_num_threads()} threads"
