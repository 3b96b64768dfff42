"""The drawing of a timeline: lanes, bars, curves of memory."""

from xml.etree import ElementTree

import pytest

from reallm.algorithms.timeline import Span
from reallm.experiments.reports.timeline_layout import MAX_LANES, draw_timeline, ranks_alike, ranks_text
from reallm.experiments.reports.timeline_svg import timeline_svg, write_timeline_svg

GIB = 2**30


def both(kind: str, name: str, start: float, end: float) -> list[Span]:
    return [Span(rank, kind, name, start, end) for rank in (0, 1)]  # type: ignore[arg-type]


STEP = [
    *both("move", "actor_gen", 0, 1),
    *both("call", "actor_gen", 1, 6),
    Span(2, "call", "critic_train", 2, 8),
    Span(2, "wait", "the end of the step", 8, 10),
]


def test_ranks_that_do_the_same_share_a_lane() -> None:
    assert ranks_alike(STEP) == [(0, 1), (2,)]


def test_ranks_with_other_memory_have_lanes_of_their_own() -> None:
    assert ranks_alike(STEP, {0: [(0, 5)], 1: [(0, 7)]}) == [(0,), (1,), (2,)]


@pytest.mark.parametrize(
    ("ranks", "text"),
    [((3,), "rank 3"), ((0, 1, 2), "ranks 0-2"), ((0, 2), "ranks 0, 2"), ((0, 2, 4, 6), "ranks 0, 2, ...")],
)
def test_texts_of_ranks(ranks: tuple[int, ...], text: str) -> None:
    assert ranks_text(ranks) == text


def test_bars_are_as_long_as_their_spans_and_waiting_is_empty() -> None:
    drawing = draw_timeline("ppo", "10 s a step", STEP, {"actor_gen": 0})
    move, generate = drawing.lanes[0].bars
    assert generate.width == pytest.approx(5 * move.width)
    assert generate.x == pytest.approx(move.x + move.width)
    assert (generate.text, move.text) == ("actor_gen", "")
    (train,) = drawing.lanes[1].bars
    assert train.color != generate.color
    assert "critic_train, 2 to 8 s" in train.about


def test_curves_of_memory_are_scaled_by_the_capacity() -> None:
    levels = {0: [(0.0, 10 * GIB), (5.0, 20 * GIB)]}
    half, full = (
        draw_timeline("ppo", "", STEP[:1], {}, levels, capacity=capacity).lanes[0] for capacity in (40 * GIB, 20 * GIB)
    )
    assert half.peak == full.peak == "20 GiB"
    heights = [min(float(point.split(" ")[1]) for point in lane.memory[1:-1].split("L")) for lane in (half, full)]
    bases = [float(lane.memory[1:].split("L")[0].split(" ")[1]) for lane in (half, full)]
    assert bases[1] - heights[1] == pytest.approx(2 * (bases[0] - heights[0]))


def test_of_many_lanes_the_first_are_drawn_and_the_rest_is_told() -> None:
    spans = [Span(rank, "call", "sft", 0, 1 + rank) for rank in range(MAX_LANES + 3)]
    drawing = draw_timeline("sft", "", spans, {})
    assert len(drawing.lanes) == MAX_LANES
    assert drawing.note == "3 more lanes are not drawn"


def test_the_svg_is_well_formed_and_names_are_escaped(tmp_path) -> None:
    spans = [Span(0, "call", "<b>&", 0, 1)]
    drawing = draw_timeline("<script>", "a & b", spans, {})
    text = timeline_svg(drawing)
    assert "<script>" not in text
    ElementTree.fromstring(text)
    write_timeline_svg(tmp_path / "plan.svg", drawing)
    assert (tmp_path / "plan.svg").read_text(encoding="utf-8") == text
