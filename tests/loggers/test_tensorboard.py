"""TensorBoard's files, and how a resumed run continues them."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from tests.helpers.loggers import CONFIG, part_of_a_run


def test_tensorboard_shows_one_curve_of_a_continued_run(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from reallm.loggers.tensorboard import TensorBoardLogger

    part_of_a_run(TensorBoardLogger(tmp_path, CONFIG), 1, 2, 3, 4, 5)
    continued = TensorBoardLogger(tmp_path, CONFIG)
    continued.resume(2)
    part_of_a_run(continued, 3, 4, 5, 6)

    shown = events.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [point.step for point in shown.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [point.step for point in shown.Scalars("eval/loss")] == [2, 4, 6]
    assert [point.step for point in shown.Tensors("config/text_summary")] == [0, 2]


def test_tensorboard_shows_only_the_second_try_of_a_run_that_begins_anew(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from reallm.loggers.tensorboard import TensorBoardLogger

    part_of_a_run(TensorBoardLogger(tmp_path, CONFIG), 1, 2, 3)
    again = TensorBoardLogger(tmp_path, CONFIG)
    again.resume(-1)
    part_of_a_run(again, 1, 2)

    shown = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [point.step for point in shown.Scalars("train/loss")] == [1, 2]


def test_a_tensorboard_logger_that_logs_nothing_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from reallm.loggers.tensorboard import TensorBoardLogger

    TensorBoardLogger(tmp_path, CONFIG).close()
    assert list(tmp_path.iterdir()) == []


def test_an_error_of_the_disk_is_raised_and_not_shown_by_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from reallm.loggers import tensorboard

    shown: list[object] = []
    monkeypatch.setattr(threading, "excepthook", shown.append)
    hide = tensorboard._hide_tracebacks_of_threads
    hide.cache_clear()

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", fail)
    with pytest.raises(OSError, match="Input/output error"):
        tensorboard.TensorBoardLogger(tmp_path, {}).log(1, {"train/loss": 1.0})
    for thread in threading.enumerate():
        if type(thread).__module__.startswith("tensorboard."):
            thread.join(60)
    assert not shown
    hide.cache_clear()  # what it has put in place ends with this test
