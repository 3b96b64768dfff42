"""The rollouts that a run keeps: a JSONL file to which each step appends."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

_STEP = re.compile(rb'\{"step": (\d+)')  # the whole line, which may be long, need not be parsed


def write_rollouts(file: Path, kept: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """Append the records of a step, of all calls; nothing is written without any."""
    lines = [f"{json.dumps(record, ensure_ascii=False)}\n" for record in chain(*kept.values())]
    if lines:
        with file.open("ab") as opened:
            opened.write("".join(lines).encode(errors="replace"))  # generated text can hold lone surrogates


def drop_rollouts_after(file: Path, step: int) -> None:
    """Drop the records of later steps, written by a process that was killed before it saved; the file may be large."""
    if not file.is_file():
        return
    end = 0
    with file.open("rb") as lines:
        for line in lines:
            found = _STEP.match(line)
            if found is None or not line.endswith(b"\n") or int(found[1]) > step:
                break
            end += len(line)
    if end < file.stat().st_size:
        os.truncate(file, end)
