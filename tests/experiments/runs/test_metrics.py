"""Curves read from `metrics.jsonl`, smoothed and thinned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm.experiments.runs.metrics import read_curves, smoothed, thinned, trend
from reallm.loggers.jsonl import JsonlLogger


def test_metrics_survive_numbers_that_json_lacks(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path, {})
    logger.log(1, {"train/loss": 2.0, "train/grad_norm": float("nan")})
    logger.log(2, {"train/loss": float("inf")})
    logger.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0]) == {"step": 1, "train/loss": 2.0, "train/grad_norm": None}
    assert read_curves(tmp_path / "metrics.jsonl") == {"train/loss": [(1, 2.0)]}


def test_smoothing_keeps_means_and_last_steps() -> None:
    assert smoothed([(1, 1.0), (2, 3.0), (3, 5.0)], window=2) == [(2, 2.0), (3, 5.0)]


def test_a_torn_last_line_and_what_is_no_number_are_passed_over(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "train/loss": 3.0, "eval/loss": null, "note": "hot", "flag": true}\n[1]\n{"step": 2, "train/lo'
    )
    assert read_curves(tmp_path / "metrics.jsonl") == {"train/loss": [(1, 3.0)]}
    assert read_curves(tmp_path / "nothing.jsonl") == {}


@settings(deadline=None)
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), n=st.integers(4, 50))
def test_a_thinned_curve_keeps_its_extremes_and_its_order(values, n):
    points = list(enumerate(values))
    kept = thinned(points, n)
    assert len(kept) <= n + 1
    assert set(kept) <= set(points)
    assert kept == sorted(kept)
    assert {min(values), max(values)} <= {value for _, value in kept}


@settings(deadline=None)
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=2000))
def test_a_trend_begins_and_ends_with_its_curve_and_stays_within_it(values):
    found = trend(list(enumerate(values)))
    assert found[0][0] == 0
    assert found[-1][0] == len(values) - 1
    assert len(found) == min(len(values), 200)
    assert all(min(values) - 1e-3 <= value <= max(values) + 1e-3 for _, value in found)


def test_a_trend_follows_a_straight_line():
    found = trend([(step, 2.0 * step) for step in range(1000)])
    assert all(value == pytest.approx(2 * step, abs=10) for step, value in found)
