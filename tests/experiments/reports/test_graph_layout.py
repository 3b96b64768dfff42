"""Drawings of dataflow graphs: nothing overlaps, nothing is cut off, and arrows end where they should."""

from __future__ import annotations

import re
from itertools import combinations, pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from reallm.algorithms.graph import Graph
from reallm.builtin import reallm_algorithms
from reallm.config.args import CallArgs, ModelArgs
from reallm.experiments.reports.graph_layout import CHARACTER, PADDING, Card, Drawing, draw
from reallm.experiments.reports.graph_svg import graph_svg
from reallm.specs import ModelFunctionCall as Call
from tests.helpers.rl_graphs import distill_graph, grpo_graph, ppo_graph, raft_graph

GRPO: Any = SimpleNamespace(beta=0.1, baseline="greedy", sync_ref_every=512, reward=ModelArgs(path=""))
LONG = (
    Call("actor_gen", "actor", "generate", ("prompt_ids",), ("input_ids",)),
    Call("old_inf", "actor", "inference", ("input_ids",), ("old_logprobs",)),
    Call("critic_train", "critic", "train_step", ("input_ids",)),
    Call("actor_train", "actor", "train_step", ("input_ids", "old_logprobs")),
    Call("critic_inf", "critic", "inference", ("input_ids",), ("values",)),
    Call("last_train", "actor", "train_step", ("values", "old_logprobs", "prompt_ids")),
)
GRAPHS = {
    "sft": reallm_algorithms()["sft"].graph,
    "ppo": ppo_graph(GRPO),
    "grpo": grpo_graph(GRPO),
    "raft": raft_graph(GRPO),
    "distill": distill_graph(GRPO),
    "long": LONG,
}
ARGS = {"actor_gen": CallArgs(layout="dp4"), "actor_train": CallArgs(layout="tp2pp2", offload=True)}


@pytest.fixture(params=GRAPHS)
def drawing(request: pytest.FixtureRequest) -> Drawing:
    return draw(request.param, Graph.from_calls(GRAPHS[request.param]), ARGS)


def points(path: str) -> list[tuple[float, float]]:
    """The corners and control points of a path, between which it lies."""
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", path)]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def boxes(path: str) -> list[tuple[float, float, float, float]]:
    """Boxes (left, top, right, bottom) that hold the segments of a path, of straight lines and curves."""
    found = []
    at = (0.0, 0.0)
    for segment in re.findall(r"[MLCQ][^MLCQ]*", path):
        of_segment = points(segment)
        if segment[0] != "M":
            xs, ys = zip(at, *of_segment, strict=True)
            found.append((min(xs), min(ys), max(xs), max(ys)))
        at = of_segment[-1]
    return found


def overlap(card: Card, box: tuple[float, float, float, float], inset: float = 1) -> bool:
    left, top, right, bottom = box
    return (
        left < card.x + card.width - inset
        and right > card.x + inset
        and top < card.y + card.height - inset
        and bottom > card.y + inset
    )


def test_cards_do_not_overlap(drawing: Drawing) -> None:
    for one, other in combinations(drawing.cards, 2):
        assert not overlap(one, (other.x, other.y, other.x + other.width, other.y + other.height), -8)


def test_everything_is_inside_the_drawing(drawing: Drawing) -> None:
    for card in drawing.cards:
        assert card.x >= 8
        assert card.y >= 8
        assert card.x + card.width <= drawing.width - 8
        assert card.y + card.height <= drawing.height - 8
    for arrow in drawing.arrows:
        assert all(4 <= x <= drawing.width - 4 and 4 <= y <= drawing.height - 4 for x, y in points(arrow.path))
    for label in drawing.labels:
        assert 30 < label.x < drawing.width - 30
        assert label.y < drawing.height - 8


def test_no_arrow_passes_behind_a_card(drawing: Drawing) -> None:
    for arrow in drawing.arrows:
        for box in boxes(arrow.path):
            assert not any(overlap(card, box) for card in drawing.cards), arrow.about


def test_the_rows_of_a_card_fit_beside_each_other(drawing: Drawing) -> None:
    for card in drawing.cards:
        left = max((len(row.text) for row in card.inputs), default=0)
        right = max((len(row.text) for row in card.outputs), default=0)
        assert CHARACTER * (left + right) + 2 * PADDING <= card.width
        rows = [*card.inputs, *card.notes], [*card.outputs, *card.notes]
        for column in rows:
            ys = [row.y for row in column]
            assert all(b - a >= 15 for a, b in pairwise(ys))
            assert all(card.y + 44 < y < card.y + card.height - 8 for y in ys)


def test_an_arrow_goes_from_the_row_that_writes_a_key_to_the_row_that_reads_it() -> None:
    drawing = draw("ppo", Graph.from_calls(GRAPHS["ppo"]))
    cards = {card.title: card for card in drawing.cards}
    arrow = next(one for one in drawing.arrows if one.about == "scores: rew_inf to critic_train")
    begin, *_, (x_end, y_end) = points(arrow.path)
    source, target = cards["rew_inf"], cards["critic_train"]
    assert begin == pytest.approx((source.x + source.width, source.outputs[0].y))
    read = next(row for row in target.inputs if row.text == "scores")
    assert (x_end + 6, y_end) == pytest.approx((target.x, read.y))  # the head is there
    assert not arrow.is_weights


def test_weights_go_to_the_next_step() -> None:
    drawing = draw("ppo", Graph.from_calls(GRAPHS["ppo"]))
    assert [arrow.about for arrow in drawing.arrows if arrow.is_weights] == [
        "weights of actor_train: actor_gen of the next step",
        "weights of critic_train: critic_inf of the next step",
    ]
    assert len(drawing.labels) == 2


def test_a_call_is_to_the_right_of_all_that_it_waits_for(drawing: Drawing) -> None:
    x = {card.title: card.x for card in drawing.cards}
    for arrow in drawing.arrows:
        if "next step" not in arrow.about:
            source, target = arrow.about.rpartition(": ")[2].split(" to ")
            assert x[source] < x[target]


def test_cards_say_what_settings_of_calls_there_are() -> None:
    drawing = draw("grpo", Graph.from_calls(GRAPHS["grpo"]), ARGS)
    notes = {card.title: [row.text for row in card.notes] for card in drawing.cards}
    assert notes["actor_gen"] == ["layout dp4"]
    assert notes["actor_train"] == ["ref follows every 512 steps", "layout tp2pp2", "offloaded afterwards"]


def test_the_file_is_plain_svg_for_light_and_dark_screens() -> None:
    text = graph_svg("p<po", Graph.from_calls(GRAPHS["ppo"]), {})
    assert text.startswith("<svg xmlns=")
    assert text.endswith("</svg>")
    assert "p&lt;po" in text
    assert "prefers-color-scheme: dark" in text
    assert "var(" not in text
    assert "<script" not in text
