"""TensorBoard's files, and how a resumed run continues them."""

from __future__ import annotations

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
