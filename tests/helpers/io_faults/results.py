"""What a command with faults leaves in its folder, by what of it is the same each time."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reallm.data.sample_fields import load_fields

OF_THE_MACHINE = ("tokens_per_s", "memory_gib")
OF_THE_TIME = (
    "summary.html",
    "summary.json",
    "loss.png",
    "state.json",
    "checksums.json",
    "timeline.jsonl",
    ".lock",
    "plan.svg",
)
"""Files with times of the clock, of which only matters whether they are there."""
LOST_WHEN_TOLD = {
    "summary.html": "no summary page: ",
    "loss.png": "no plot of the losses: ",
    "samples": "no samples: ",
    "status": "no summary: ",
}
"""What of a run is for people alone, and may be missing if the run says so."""
TOLD = {
    **LOST_WHEN_TOLD,
    "graph.svg": "no drawing of the graph: ",
    "outputs": "outputs are not cached",
    "rollouts": "no rollouts: ",
    "timeline": "no timeline: ",
}


def state_of(folder: Path) -> dict[str, Any]:
    """All of a run that the same run has again: weights, optimizer, metrics, reports that exist; and leftovers."""
    run, saves = folder / "run", folder / "run" / "checkpoints"
    found: dict[str, Any] = {
        **{path.name: "is there" for path in run.iterdir()},
        "saves": sorted(path.name for path in saves.iterdir()),
        "last": str((saves / "last").readlink()),
        "best": str((saves / "best").readlink()),
        "metrics": numbers_of(run / "metrics.jsonl"),
        "samples": (run / "samples.jsonl").read_text(),
        "status": json.loads((run / "summary.json").read_text())["status"],
        "leftovers": sorted(
            str(path.relative_to(folder))
            for path in folder.rglob(".*")
            if path != run / ".lock"
        ),
    }  # fmt: skip
    for path in sorted((saves / "last").resolve().rglob("*")):
        if path.is_file() and path.name not in ("checksums.json", "state.json"):
            found[str(path.relative_to(saves))] = hashlib.sha256(path.read_bytes()).hexdigest()
    state = json.loads((saves / "last" / "training_state" / "state.json").read_text())
    found["state"] = {name: value for name, value in state.items() if name not in ("seconds", "metrics")}
    return found


def files_of(folder: Path) -> Mapping[str, Any]:
    """All files and links of a folder, by their contents where they are the same in each run."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = re.sub(r"[0-9a-f]{32,}", "*", str(path.relative_to(folder)))
        key = "rollouts" if path.name == "rollouts.jsonl" else path.name if path.name in TOLD else name
        if path.is_symlink():
            found[key] = str(path.readlink())
        elif path.name == "metrics.jsonl":
            found[key] = numbers_of(path)
        elif path.name == "result.json":
            found[key] = {name: value for name, value in json.loads(path.read_text()).items() if name != "seconds"}
        elif path.parent.parent.name == "precomputed":  # the file also has a name drawn for the computation
            fields, _ = load_fields(path)
            found[key] = {name: field.values.tolist() for name, field in fields.items()}
        elif path.is_file():
            is_same = path.name not in OF_THE_TIME and not name.startswith(("cache/", "run/config"))
            found[key] = hashlib.sha256(path.read_bytes()).hexdigest() if is_same else "is there"
    return found


def numbers_of(file: Path) -> list[dict[str, float]]:
    """The lines of a `metrics.jsonl` without those numbers that are the machine's."""
    lines = map(json.loads, file.read_text().splitlines())
    return [{name: value for name, value in line.items() if not name.endswith(OF_THE_MACHINE)} for line in lines]
