"""Parses distributions of lengths: `512`, `lognormal:256:1`, or a run's `rollouts.jsonl`. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from reallm.errors import ConfigError
from reallm.foreign_files import parse_json, reading
from reallm.planning.workload import N_QUANTILES, Lengths

FORMS = "a number (512), lognormal:MEDIAN:SIGMA, uniform:SHORTEST:LONGEST, or a rollouts.jsonl of a run"


def parse_lengths(key: str, text: str, longest: int | None = None) -> Lengths:
    """A distribution of lengths in tokens.

    Args:
        key: the key that it is given for, which errors name, such as `answer_lens`.
        text: a number for a constant length; `lognormal:256:1` for lengths with this median whose logarithm has this
            standard deviation; `uniform:64:512`; or the path of a `rollouts.jsonl`, of whose answers the lengths are
            read.
        longest: the length at which sequences are cut; None: nowhere.

    Raises:
        ConfigError: the text is none of these, a number is out of range, or the file cannot be read.
    """
    if text.endswith(".jsonl"):
        return _cut(measured_answers(key, Path(text)), longest)
    kind, *numbers = text.split(":")
    try:
        if not numbers:
            return _cut(Lengths.constant(_length(kind)), longest)
        first, second = map(float, numbers)
    except ValueError:
        raise ConfigError(f"{key}={text}: must be {FORMS}") from None
    if kind == "lognormal" and first >= 1 and second >= 0:
        return Lengths.lognormal(first, second, longest or 2**31)
    if kind == "uniform" and 1 <= first <= second:
        step = (second - first) / N_QUANTILES
        return _cut(Lengths(tuple(round(first + (index + 0.5) * step) for index in range(N_QUANTILES))), longest)
    if kind in ("lognormal", "uniform"):
        needs = {"lognormal": "a MEDIAN of at least 1 and a SIGMA of at least 0", "uniform": "1 <= SHORTEST <= LONGEST"}
        raise ConfigError(f"{key}={text}: {kind} needs {needs[kind]}")
    raise ConfigError(f"{key}={text}: must be {FORMS}")


def measured_answers(key: str, file: Path) -> Lengths:
    """The lengths of the answers that a run has kept in its `rollouts.jsonl`.

    Raises:
        ConfigError: the file cannot be read, or has no rollouts.
    """
    problem = "cannot be read as the rollouts.jsonl of a run"
    with (
        reading(f"{key}={file}", error=ConfigError, problem=problem),
        file.open(encoding="utf-8", errors="replace") as lines,
    ):
        lengths = [max(1, int(answer["length"])) for line in lines for answer in parse_json(line)["answers"]]
        if lengths:
            return Lengths.of(lengths)
    raise ConfigError(f"{key}={file}: has no rollouts; the run must keep some (keep_rollouts)")


def _length(text: str) -> int:
    length = int(text)
    if length < 1:
        raise ValueError
    return length


def _cut(lengths: Lengths, longest: int | None) -> Lengths:
    return lengths if longest is None else Lengths(tuple(min(longest, value) for value in lengths.values))
