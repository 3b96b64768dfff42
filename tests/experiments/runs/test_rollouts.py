"""The file of rollouts that a run keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reallm.experiments.runs.rollouts import drop_rollouts_after, write_rollouts


def steps(file: Path) -> list[Any]:
    return [json.loads(line)["step"] for line in file.read_bytes().splitlines()]


def test_steps_append_their_records_and_a_resumed_run_drops_later_ones(tmp_path: Path) -> None:
    file = tmp_path / "rollouts.jsonl"
    drop_rollouts_after(file, 0)
    write_rollouts(file, {})
    assert not file.exists()
    for step in (1, 2, 10):
        write_rollouts(file, {"actor_train": [{"step": step, "prompt": "\ud83d \u2028 \n"}, {"step": step}]})
    assert steps(file) == [1, 1, 2, 2, 10, 10]
    with file.open("a") as opened:
        opened.write('{"step": 2, "pro')
    drop_rollouts_after(file, 10)
    assert steps(file) == [1, 1, 2, 2, 10, 10]
    drop_rollouts_after(file, 2)
    assert steps(file) == [1, 1, 2, 2]
    drop_rollouts_after(file, 0)
    assert steps(file) == []
