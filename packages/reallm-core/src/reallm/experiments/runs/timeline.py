"""The timeline of a run: a JSONL file with what each rank did in each step, and when."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from reallm.algorithms.timeline import Span
from reallm.appended_files import append


def write_timeline(file: Path, step: int, spans: Iterable[Span]) -> None:
    """Append the spans of a step; times are rounded to microseconds."""
    lines = [
        {"step": step, **dataclasses.asdict(span), "start": round(span.start, 6), "end": round(span.end, 6)}
        for span in spans
    ]
    append(file, "".join(f"{json.dumps(line)}\n" for line in lines).encode())
