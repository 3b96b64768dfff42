"""`metrics.jsonl`, and how a resumed run continues it."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm.loggers import jsonl as jsonl_module
from reallm.loggers.jsonl import JsonlLogger, lines_up_to
from tests.helpers.loggers import part_of_a_run


def jsonl(folder: Path, *steps: int, resume: int | None = None) -> bytes:
    logger = JsonlLogger(folder, {})
    if resume is not None:
        logger.resume(resume)
    part_of_a_run(logger, *steps)
    return (folder / "metrics.jsonl").read_bytes()


def test_a_continued_log_is_that_of_a_run_that_was_never_killed(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    expected = jsonl(whole, 1, 2, 3, 4, 5, 6)
    jsonl(killed, 1, 2, 3, 4, 5)
    with (killed / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "train/lo')  # killed while it wrote
    assert jsonl(killed, 3, 4, 5, 6, resume=2) == expected
    assert [path.name for path in killed.iterdir()] == ["metrics.jsonl"]


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), max_size=30).map(sorted), st.integers(-1, 20), st.data())
def test_wherever_a_log_was_cut_off_what_stays_is_whole_and_of_steps_up_to_the_one_resumed(
    steps: list[int], step: int, data: st.DataObject
) -> None:
    lines = [json.dumps({"step": one, "text": "ünï"}, ensure_ascii=False).encode() + b"\n" for one in steps]
    content = b"".join(lines)
    cut = data.draw(st.integers(0, len(content)))
    kept = lines_up_to(step, content[:cut])
    assert content.startswith(kept)
    whole = content[:cut].count(b"\n")
    assert kept == b"".join(line for line, one in zip(lines[:whole], steps, strict=False) if one <= step)


def test_lines_that_are_not_ours_stay_byte_for_byte() -> None:
    foreign = b'# a remark\r\n\n{"step": 9}\n[9]\n{"note": 9}\n{"step": "9"}\n{"step":  2 , "a": NaN}\n\xff\xfe\n'
    assert lines_up_to(2, foreign) == foreign.replace(b'{"step": 9}\n', b"")


def test_lines_for_which_there_is_no_room_are_written_with_later_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    logger = JsonlLogger(tmp_path, {})
    logger.log(1, {"a": 1.0})
    with monkeypatch.context() as while_full:
        while_full.setattr(jsonl_module, "append", full)
        logger.log(2, {"a": 2.0})
        logger.log(3, {"a": 3.0})
        with pytest.raises(OSError, match="No space left"):
            logger.close()  # they are lost, and the run says so
    logger.log(4, {"a": 4.0})
    logger.close()
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines] == [1, 2, 3, 4]


def test_a_log_that_needs_no_change_is_not_written_anew(tmp_path: Path) -> None:
    jsonl(tmp_path, 1, 2)
    before = (tmp_path / "metrics.jsonl").stat().st_ino
    jsonl(tmp_path, 3, resume=2)
    assert (tmp_path / "metrics.jsonl").stat().st_ino == before
