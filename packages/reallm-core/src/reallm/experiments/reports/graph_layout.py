"""Lays out the drawing of a dataflow graph: the positions of cards and arrows as plain numbers, which a template draws.

Calls are cards in columns, from left to right: a call is to the right of all that it waits for. On a card, what the
call reads is on the left and what it writes on the right, a row for each key, and an arrow goes from row to row. An
arrow that passes a column has a lane of its own between the cards there. Arrows to the next step run below all cards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from reallm.algorithms.graph import Edge, Graph
from reallm.config.args import CallArgs
from reallm.specs import CallKind, ModelFunctionCall

DOES: Mapping[CallKind, str] = {
    "generate": "generates with {}",
    "inference": "inference with {}",
    "train_step": "trains {}",
    "reward": "reward by {}",
}
"""What a call of a kind does with its role."""

DATASET = "dataset"
"""Title of the card with the keys of the dataset."""

N_COLORS = 6
"""Colours of roles, those of the page's charts."""

MARGIN = 16
CHARACTER = 7.3
"""Width of a character of a key, at 12 pixels in a font of fixed width."""
TITLE_CHARACTER = 8.6
SMALL_CHARACTER = 6.4
"""Width of a character of small text in the page's font, of which few are wider."""
PADDING = 12
BETWEEN = 22
"""Least space between the keys on the left and on the right of a card."""
HEADER = 48
ROW = 19
NOTE = 17
BELOW_ROWS = 8
GAP = 26
"""Space between cards of a column."""
LANE = 16
"""Height of the lane of an arrow that passes a column."""
GUTTER = 76
"""Space between columns."""
TURN = 14
"""Space between arrows to the next step, where they run side by side."""


@dataclass(frozen=True)
class Row:
    """A key on a card."""

    text: str
    y: float
    """Middle of the row."""


@dataclass(frozen=True)
class Card:
    """A call, or the dataset."""

    title: str
    subtitle: str
    color: int | None
    """Index in the palette, one for each role; None for the dataset."""
    inputs: tuple[Row, ...]
    outputs: tuple[Row, ...]
    notes: tuple[Row, ...]
    x: float
    y: float
    width: float
    height: float

    @property
    def weights_y(self) -> float:
        """Where arrows of weights begin and end: in the middle of the header."""
        return self.y + HEADER / 2


@dataclass(frozen=True)
class Arrow:
    """An edge of the graph."""

    path: str
    """Path as in SVG."""
    head: str
    """Path of its head."""
    color: int | None
    is_weights: bool
    about: str
    """What it says, shown under the mouse: `input_ids: actor_gen to rew_inf`."""


@dataclass(frozen=True)
class Label:
    """Text on an arrow to the next step."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Drawing:
    """The drawing of a graph."""

    title: str
    width: float
    height: float
    cards: tuple[Card, ...]
    arrows: tuple[Arrow, ...]
    labels: tuple[Label, ...]


def draw(title: str, graph: Graph, call_args: Mapping[str, CallArgs] | None = None) -> Drawing:
    """The drawing of a graph.

    Args:
        title: name of the algorithm.
        graph: the graph.
        call_args: settings of calls that have some, by name of the call.
    """
    cards = _cards(graph, call_args or {})
    edges = [*_edges_from_dataset(graph), *graph.needed_edges]
    columns = _columns(cards, edges)
    lanes = _lanes(columns, edges)
    placed, lane_y = _placed(cards, columns, lanes, edges)
    bottom = max([card.y + card.height for card in placed.values()] + [y + LANE / 2 for y in lane_y.values()])
    arrows = [_arrow(edge, placed, columns, lane_y) for edge in edges]
    to_next = [edge for edge in graph.edges if edge.next_step]
    labels = []
    for number, edge in enumerate(to_next):
        arrow, label = _arrow_to_next_step(edge, placed, number, bottom + TURN * (1.6 + 1.4 * number))
        arrows.append(arrow)
        labels.append(label)
    depth = TURN * (1.6 + 1.4 * (len(to_next) - 1)) + 4 if to_next else 0
    right = max(card.x + card.width for card in placed.values())
    room = TURN * (len(to_next) + 0.8) if to_next else 0
    return Drawing(
        title, right + max(MARGIN, room), bottom + depth + MARGIN, tuple(placed.values()), tuple(arrows), tuple(labels)
    )


def does(call: ModelFunctionCall) -> str:
    """What a call does, with its role: `generates with actor`."""
    return DOES[call.kind].format(call.role)


def call_notes(call: ModelFunctionCall, args: CallArgs | None) -> list[str]:
    """What else is to be said of a call, a short line each: computed once, weights that follow, its keys."""
    notes = ["once, before training"] if call.precompute else []
    for update in call.updates:
        share = "" if update.eta == 1 else f", by {update.eta:g}"
        when = "each step" if update.every == 1 else f"every {update.every:,} steps"
        notes.append(f"{update.target} follows {when}{share}")
    if args is not None and args.layout is not None:
        notes.append(f"layout {args.layout}")
    if args is not None and args.offload:
        notes.append("offloaded afterwards")
    if args is not None and args.prefetch:
        notes.append("prefetched")
    if args is not None and args.max_tokens_per_microbatch is not None:
        notes.append(f"at most {args.max_tokens_per_microbatch:,} tokens at once")
    return notes


def _cards(graph: Graph, call_args: Mapping[str, CallArgs]) -> dict[str, Card]:
    """The cards by title, without positions; the dataset comes first."""
    roles = graph.all_roles
    cards = [_card(DATASET, "each row", None, (), graph.dataset_keys, ())]
    for call in graph.calls:
        notes = call_notes(call, call_args.get(call.name))
        color = roles.index(call.role) % N_COLORS
        cards.append(_card(call.name, does(call), color, call.inputs, call.outputs, notes))
    return {card.title: card for card in cards}


def _card(
    title: str,
    subtitle: str,
    color: int | None,
    inputs: Iterable[str],
    outputs: Iterable[str],
    notes: Iterable[str],
) -> Card:
    """A card whose upper left corner is at the origin."""
    left, right = list(inputs), list(outputs)
    n_rows = max(len(left), len(right))
    notes_top = HEADER + n_rows * ROW + (4 if n_rows else 0)
    noted = tuple(Row(text, notes_top + NOTE * (i + 0.5)) for i, text in enumerate(notes))
    keys = CHARACTER * (max(map(len, left), default=0) + max(map(len, right), default=0))
    widths = [
        keys + (BETWEEN if left and right else 0),
        TITLE_CHARACTER * len(title),
        SMALL_CHARACTER * max(len(subtitle), *(len(note.text) for note in noted), 0),
    ]
    return Card(
        title,
        subtitle,
        color,
        _rows(left),
        _rows(right),
        noted,
        0,
        0,
        round(max(widths) + 2 * PADDING, 1),
        notes_top + NOTE * len(noted) + BELOW_ROWS,
    )


def _rows(keys: Sequence[str]) -> tuple[Row, ...]:
    return tuple(Row(key, HEADER + ROW * (i + 0.5)) for i, key in enumerate(keys))


def _edges_from_dataset(graph: Graph) -> list[Edge]:
    given = graph.dataset_keys
    return [Edge(DATASET, call.name, key) for call in graph.calls for key in call.inputs if key in given]


def _columns(cards: Mapping[str, Card], edges: Sequence[Edge]) -> dict[str, int]:
    """The column of each card: the length of the longest chain of arrows that ends there."""
    columns: dict[str, int] = {}
    for name in cards:  # in execution order
        before = [columns[edge.source] for edge in edges if edge.target == name]
        columns[name] = 1 + max(before, default=0 if name != DATASET else -1)
    return columns


@dataclass(frozen=True)
class _Lane:
    """A passage of arrows from one row through a column."""

    source: str
    key: str | None
    column: int


def _lanes(columns: Mapping[str, int], edges: Sequence[Edge]) -> list[_Lane]:
    found = [
        _Lane(edge.source, edge.key, column)
        for edge in edges
        for column in range(columns[edge.source] + 1, columns[edge.target])
    ]
    return list(dict.fromkeys(found))


def _placed(
    cards: Mapping[str, Card], columns: Mapping[str, int], lanes: Sequence[_Lane], edges: Sequence[Edge]
) -> tuple[dict[str, Card], dict[_Lane, float]]:
    """The cards at their places, and the middle of each lane.

    Each column is sorted and placed so that arrows from the columns before it are as level as its gaps allow.
    """
    ordered = sorted(cards, key=columns.__getitem__)
    by_column = {column: list(names) for column, names in groupby(ordered, columns.__getitem__)}
    placed = dict(cards)
    lane_y: dict[_Lane, float] = {}
    x = float(MARGIN)
    for column, names in by_column.items():
        width = max(cards[name].width for name in names)
        wanted = {}
        for name in names:
            offsets = [
                _source_y(edge, columns, placed, lane_y) - (_port(cards[name].inputs, edge.key) or HEADER / 2)
                for edge in edges
                if edge.target == name
            ]
            wanted[name] = sum(offsets) / len(offsets) if offsets else 0.0
        lane_wanted = {
            lane: _source_y(Edge(lane.source, "", lane.key), columns, placed, lane_y, column) - LANE / 2
            for lane in lanes
            if lane.column == column
        }
        items: list[tuple[float, float, str | _Lane]] = [(wanted[name], cards[name].height, name) for name in names]
        items += [(y, LANE, lane) for lane, y in lane_wanted.items()]
        for y, item in _stacked(items):
            if isinstance(item, _Lane):
                lane_y[item] = y + LANE / 2
            else:
                placed[item] = _moved(replace(cards[item], width=width), x, y)
        x += width + GUTTER
    top = min([card.y for card in placed.values()] + [y - LANE / 2 for y in lane_y.values()])
    shift = MARGIN - top
    return (
        {name: _moved(card, 0, shift) for name, card in placed.items()},
        {lane: y + shift for lane, y in lane_y.items()},
    )


def _stacked(items: Sequence[tuple[float, float, str | _Lane]]) -> list[tuple[float, str | _Lane]]:
    """Items (wanted y, height, what) without overlap in the order of their wanted middles, as near as possible."""
    ordered = sorted(items, key=lambda item: item[0] + (item[1] / 2 if isinstance(item[2], _Lane) else 0))
    tops: list[float] = []
    bottom = float("-inf")
    for wanted, height, what in ordered:
        tops.append(max(wanted, bottom))
        bottom = tops[-1] + height + (LANE / 4 if isinstance(what, _Lane) else GAP)
    pushed = sum(top - item[0] for top, item in zip(tops, ordered, strict=True)) / len(ordered)
    return [(round(top - pushed, 1), item[2]) for top, item in zip(tops, ordered, strict=True)]


def _moved(card: Card, x: float, y: float) -> Card:
    def moved(rows: tuple[Row, ...]) -> tuple[Row, ...]:
        return tuple(replace(row, y=row.y + y) for row in rows)

    return replace(
        card,
        x=card.x + x,
        y=card.y + y,
        inputs=moved(card.inputs),
        outputs=moved(card.outputs),
        notes=moved(card.notes),
    )


def _port(rows: Sequence[Row], key: str | None) -> float | None:
    return next((row.y for row in rows if row.text == key), None)


def _source_y(
    edge: Edge,
    columns: Mapping[str, int],
    placed: Mapping[str, Card],
    lane_y: Mapping[_Lane, float],
    column: int | None = None,
) -> float:
    """Where an arrow leaves the column before that of its target, or before `column`."""
    before = (columns[edge.target] if column is None else column) - 1
    lane = _Lane(edge.source, edge.key, before)
    if lane in lane_y:
        return lane_y[lane]
    card = placed[edge.source]
    return _port(card.outputs, edge.key) or card.weights_y


def _arrow(edge: Edge, placed: Mapping[str, Card], columns: Mapping[str, int], lane_y: Mapping[_Lane, float]) -> Arrow:
    source, target = placed[edge.source], placed[edge.target]
    x, y = source.x + source.width, _port(source.outputs, edge.key) or source.weights_y
    path = [f"M{x:g} {y:g}"]
    for column in range(columns[edge.source] + 1, columns[edge.target]):
        left, right = _sides(column, placed, columns)
        y_lane = lane_y[_Lane(edge.source, edge.key, column)]
        path.append(_curve(x, y, left, y_lane))
        path.append(f"L{right:g} {y_lane:g}")
        x, y = right, y_lane
    y_end = _port(target.inputs, edge.key) or target.weights_y
    path.append(_curve(x, y, target.x - 6, y_end))
    what = f"weights of {edge.source}" if edge.key is None else edge.key
    about = f"{what}: {edge.source} to {edge.target}"
    return Arrow("".join(path), _head(target.x, y_end), source.color, edge.key is None, about)


def _sides(column: int, placed: Mapping[str, Card], columns: Mapping[str, int]) -> tuple[float, float]:
    card = next(placed[name] for name in placed if columns[name] == column)
    return card.x, card.x + card.width


def _arrow_to_next_step(edge: Edge, placed: Mapping[str, Card], number: int, y: float) -> tuple[Arrow, Label]:
    """The arrow from a card to the right of its column, below all cards, and up to the left of the target."""
    source, target = placed[edge.source], placed[edge.target]
    out = source.x + source.width + TURN * (number + 0.8)
    back = target.x - TURN * (number + 1.3)
    path = (
        f"M{source.x + source.width:g} {source.weights_y:g}L{out - 6:g} {source.weights_y:g}"
        f"Q{out:g} {source.weights_y:g} {out:g} {source.weights_y + 6:g}L{out:g} {y - 6:g}"
        f"Q{out:g} {y:g} {out - 6:g} {y:g}L{back + 6:g} {y:g}Q{back:g} {y:g} {back:g} {y - 6:g}"
        f"L{back:g} {target.weights_y + 6:g}Q{back:g} {target.weights_y:g} {back + 6:g} {target.weights_y:g}"
        f"L{target.x - 6:g} {target.weights_y:g}"
    )
    about = f"weights of {edge.source}: {edge.target} of the next step"
    label = Label((out + back) / 2, y, "next step")
    return Arrow(path, _head(target.x, target.weights_y), source.color, True, about), label


def _curve(x: float, y: float, x_end: float, y_end: float) -> str:
    reach = (x_end - x) / 2
    return f"C{x + reach:g} {y:g} {x_end - reach:g} {y_end:g} {x_end:g} {y_end:g}"


def _head(x: float, y: float) -> str:
    return f"M{x:g} {y:g}l-8 -4v8z"
