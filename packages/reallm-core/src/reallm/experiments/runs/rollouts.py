"""The rollouts that a run keeps: a JSONL file to which each training step appends. It may be large."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from reallm.appended_files import append
from reallm.atomic_files import errors_name
from reallm.foreign_files import json_or_none

_STEP = re.compile(rb'\{"step": (\d+)')  # the whole line, which may be long, need not be parsed


def write_rollouts(file: Path, kept: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """Append the records of a step, of all calls; nothing is written without any."""
    lines = [f"{json.dumps(record, ensure_ascii=False)}\n" for record in chain(*kept.values())]
    if lines:
        append(file, "".join(lines).encode(errors="replace"))  # generated text can hold lone surrogates


def drop_rollouts_after(file: Path, step: int) -> None:
    """Drop the records of later steps, written by a process that was killed before it saved."""
    if not file.is_file():
        return
    with errors_name(file):
        end = 0
        with file.open("rb") as lines:
            for line in lines:
                found = _STEP.match(line)
                if found is None or not line.endswith(b"\n") or int(found[1]) > step:
                    break
                end += len(line)
        if end < file.stat().st_size:
            os.truncate(file, end)


def read_rollouts(file: Path, n_steps: int, n_prompts: int) -> dict[int, list[dict[str, Any]]]:
    """The records of some steps, evenly spaced from the first to the last, by step; empty without a file.

    Lines that are damaged are left out.

    Args:
        file: the JSONL file.
        n_steps: most steps.
        n_prompts: most records of a step, its first.
    """
    if not file.is_file():
        return {}
    places: dict[int, list[tuple[int, int]]] = {}
    position = 0
    with file.open("rb") as lines:
        for line in lines:
            found = _STEP.match(line)
            if found is not None and line.endswith(b"\n"):
                places.setdefault(int(found[1]), []).append((position, len(line)))
            position += len(line)
        steps = sorted(places)
        last = len(steps) - 1
        chosen = sorted({steps[round(last * i / max(1, n_steps - 1))] for i in range(n_steps)}) if steps else []
        return {step: list(_records(lines, places[step][:n_prompts])) for step in chosen}


def _records(file: BinaryIO, places: Iterable[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    for start, size in places:
        file.seek(start)
        record = json_or_none(file.read(size))
        if isinstance(record, dict):
            yield record
