"""Weights & Biases without a network: what lies in the run folder for `wandb sync`."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.installed_loggers.conftest import PartOfARun

records_pb2 = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="wandb is not installed: tox run -e loggers")

OFFLINE = {"WANDB_MODE": "offline"}


def records(file: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: after 7 bytes, LevelDB's log format, blocks of 32 KiB with pieces of records."""
    data = file.read_bytes()
    position, record = 7, b""
    while position < len(data):
        left = 2**15 - position % 2**15
        if left < 7:  # no room for a piece: the rest of a block is padding
            position += left
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, position)
        position += 7 + length
        record += data[position - length : position]
        if kind in (1, 4):  # whole, or the last piece
            yield records_pb2.Record.FromString(record)
            record = b""


def parts(run_dir: Path) -> list[list[Any]]:
    """The records of each part of a run, in the order in which they were started."""
    return [list(records(file)) for file in sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))]


def started(part: list[Any]) -> Any:
    return next(record.run for record in part if record.WhichOneof("record_type") == "run")


def rows(part: list[Any]) -> list[dict[str, Any]]:
    """What was logged, without what wandb adds."""
    history = [record.history for record in part if record.WhichOneof("record_type") == "history"]
    items = [
        {(item.key or ".".join(item.nested_key)): json.loads(item.value_json) for item in row.item} for row in history
    ]
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in items]


def test_a_run_without_a_network_is_all_there_to_be_synced(tmp_path: Path, part_of_a_run: PartOfARun) -> None:
    part_of_a_run("wandb", tmp_path / "mine", 1, 2, **OFFLINE)
    (part,) = parts(tmp_path / "mine")
    run = started(part)
    assert (run.project, run.display_name, run.resume) == ("reallm", "mine", False)
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert config["optimizer"] == {"lr": 1e-3}

    logged = rows(part)
    assert [row["step"] for row in logged] == [1, 2, 2]
    assert [row.get("train/loss") for row in logged] == [1.0, 0.5, None]
    assert [row.get("eval/loss") for row in logged] == [None, None, 1.0]
    charts = {record.metric.glob_name: record.metric.step_metric for record in part if record.HasField("metric")}
    assert charts["*"] == "step"


def test_neither_code_nor_output_is_kept(tmp_path: Path, part_of_a_run: PartOfARun) -> None:
    part_of_a_run("wandb", tmp_path / "mine", 1, 2, **OFFLINE)
    (part,) = parts(tmp_path / "mine")
    assert not any(record.WhichOneof("record_type") in ("output", "output_raw") for record in part)
    (files,) = tmp_path.glob("mine/wandb/offline-run-*/files")
    assert {path.name for path in files.rglob("*")} <= {"requirements.txt", "wandb-metadata.json", "config.yaml"}


def test_a_continued_run_continues_the_same_run_and_loses_no_step(tmp_path: Path, part_of_a_run: PartOfARun) -> None:
    part_of_a_run("wandb", tmp_path / "mine", 1, 4, **OFFLINE)
    said = part_of_a_run("wandb", tmp_path / "mine", 3, 6, 2, **OFFLINE)
    assert "is off" not in said
    first, second = parts(tmp_path / "mine")
    assert started(first).run_id == started(second).run_id
    assert started(second).resume
    assert [row["step"] for row in rows(second)] == [3, 4, 4, 5, 6, 6]


def test_the_project_and_the_entity_are_those_of_the_environment(tmp_path: Path, part_of_a_run: PartOfARun) -> None:
    part_of_a_run("wandb", tmp_path / "mine", 1, 1, WANDB_PROJECT="other", WANDB_ENTITY="us", **OFFLINE)
    run = started(parts(tmp_path / "mine")[0])
    assert (run.entity, run.project) == ("us", "other")


def test_without_an_account_the_run_goes_on_and_says_so(tmp_path: Path, part_of_a_run: PartOfARun) -> None:
    said = part_of_a_run("wandb", tmp_path / "mine", 1, 2)
    (line,) = [line for line in said.splitlines() if line.startswith("logger ")]
    assert line.startswith("logger 'wandb' failed and is switched off: UsageError: No API key configured.")
    assert len((tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()) == 3
