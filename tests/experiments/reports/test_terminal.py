"""Curves drawn in text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reallm.experiments.reports.png import save_plot
from reallm.experiments.reports.terminal import TextCurve, overlay, terminal_plot


@pytest.mark.parametrize("n", [1, 2, 7, 500])
def test_curves_can_be_drawn_from_any_number_of_points(n: int, tmp_path: Path) -> None:
    curve = [(step, 5.0 / step) for step in range(1, n + 1)]
    text = terminal_plot(curve, width=20, height=4)
    lines = text.splitlines()
    assert len(lines) == 6
    assert lines[0].lstrip().startswith("5" if n < 40 else "1")  # of many points, neighbours are averaged
    assert lines[-1].endswith(f"step {n}")
    assert any("\u2801" <= char <= "\u28ff" for char in text)
    save_plot({"train/loss": curve, "eval/loss": curve[:1], "train/lr": curve}, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_falling_curve_is_drawn_falling() -> None:
    lines = terminal_plot([(step, 100.0 - step) for step in range(100)], width=10, height=5).splitlines()
    filled = [[char != "\u2800" for char in line.partition("│")[2]] for line in lines[:5]]
    assert [row.index(True) for row in filled] == [0, 2, 4, 6, 8]


def drawn(*curves: TextCurve, width: int = 20, height: int = 5) -> list[str]:
    """The lines of a plot without its axes."""
    text = overlay(curves, ("0", "end"), width=width, height=height).plain
    return [line.partition("│")[2] for line in text.splitlines()[:height]]


def test_a_shorter_run_ends_where_it_ended():
    long = TextCurve([(step, 1.0) for step in range(100)], "A")
    short = TextCurve([(step, 2.0) for step in range(50)], "B")
    top, *_, bottom = drawn(long, short)
    assert top.rstrip("\u2800").endswith("B")
    assert len(top.rstrip("\u2800")) == 10
    assert bottom.endswith("A")


def test_curves_that_run_as_one_show_the_letters_of_all():
    points = [(step, 1.0 / (step + 1)) for step in range(100)]
    assert set("".join(drawn(*(TextCurve(points, letter) for letter in "ABC"), width=60))) >= {"A", "B", "C"}


@settings(deadline=None)
@given(
    curves=st.lists(
        st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e9, 1e9)), min_size=1, max_size=30),
        min_size=1,
        max_size=5,
    ),
    width=st.integers(8, 60),
    height=st.integers(1, 12),
)
def test_any_curves_fill_just_the_room_they_are_given(curves, width, height):
    letters = [TextCurve(sorted(points), letter) for points, letter in zip(curves, "ABCDE", strict=False)]
    lines = drawn(*letters, width=width, height=height)
    assert [len(line) for line in lines] == [width] * height
    assert "A" in "".join(lines)
