"""Lays out the drawing of a timeline: the positions of lanes and bars as plain numbers, which a template draws.

Ranks that do the same at the same times share a lane. Below its bars, a lane may have a curve of the memory held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from reallm.algorithms.timeline import Span, SpanKind
from reallm.experiments.reports.charts import Tick, nice_steps
from reallm.experiments.reports.graph_layout import N_COLORS
from reallm.training.memory import size_text

WIDTH = 1040
LABELS = 130
"""Width of the column of labels."""
MARGIN = 16
HEADER = 58
LANE = 26
"""Height of the bars of a lane."""
MEMORY = 24
"""Height of the curve of memory below them."""
GAP = 12
"""Space between lanes."""
AXIS = 30
CHARACTER = 7.3
"""Width of a character in a bar."""
MAX_LANES = 32
"""Maximum number of lanes that are drawn; the note below says how many are left out."""

DOES: Mapping[SpanKind, str] = {
    "call": "",
    "move": "weights for ",
    "reload": "from host memory: ",
    "offload": "to host memory: ",
    "data": "outputs: ",
    "wait": "waits: ",
}
"""What a bar of each kind says before its name, under the mouse."""

Levels = Sequence[tuple[float, int]]
"""Times in seconds, ascending, and the bytes that are held from then on."""


@dataclass(frozen=True)
class Bar:
    """Something that the ranks of a lane do."""

    x: float
    width: float
    kind: SpanKind
    color: int
    text: str
    """Written on the bar; empty if it is too narrow."""
    about: str
    """Shown under the mouse."""


@dataclass(frozen=True)
class Lane:
    """What some ranks do over time."""

    label: str
    y: float
    bars: tuple[Bar, ...]
    memory: str
    """The curve of memory as a path; empty without one."""
    peak: str
    """The highest memory, as text."""


@dataclass(frozen=True)
class TimelineDrawing:
    """The drawing of a timeline."""

    title: str
    subtitle: str
    width: float
    height: float
    lanes: tuple[Lane, ...]
    ticks: tuple[Tick, ...]
    """Labels of the time axis; positions are those of the drawing."""
    note: str


def draw_timeline(
    title: str,
    subtitle: str,
    spans: Sequence[Span],
    colors: Mapping[str, int],
    memory: Mapping[int, Levels] | None = None,
    capacity: int | None = None,
) -> TimelineDrawing:
    """The drawing of a timeline.

    Args:
        title: heading.
        subtitle: line below the heading.
        spans: what ranks do; at least one.
        colors: number of a colour by name of a span; others are grey.
        memory: bytes that a rank holds over time, by rank.
        capacity: bytes of a rank, the height of the curves of memory; None: the most that is held.
    """
    levels = memory or {}
    end = max(span.end for span in spans)
    scale = (WIDTH - LABELS - 2 * MARGIN) / (end or 1)
    highest = capacity or max((held for of_rank in levels.values() for _, held in of_rank), default=1)
    groups = ranks_alike(spans, levels)
    pitch = LANE + GAP + (MEMORY if levels else 0)
    lanes = []
    for number, ranks in enumerate(groups[:MAX_LANES]):
        y = HEADER + number * pitch
        own = [span for span in spans if span.rank == ranks[0] and span.kind != "wait"]
        bars = tuple(_bar(span, colors.get(span.name, N_COLORS), scale) for span in own)
        held = levels.get(ranks[0], ())
        peak = size_text(max(size for _, size in held)) if held else ""
        lanes.append(Lane(ranks_text(ranks), y, bars, _curve(held, y + LANE, end, scale, highest), peak))
    left_out = len(groups) - len(lanes)
    bottom = HEADER + len(lanes) * pitch
    steps = [second for second in nice_steps(0, end, 8) if second <= end]
    ticks = tuple(Tick(round(LABELS + MARGIN + second * scale, 1), f"{second:g} s") for second in steps)
    note = f"{left_out} more lanes are not drawn" if left_out else ""
    height = bottom + AXIS + (18 if note else 0)
    return TimelineDrawing(title, subtitle, WIDTH, height, tuple(lanes), ticks, note)


def ranks_alike(spans: Sequence[Span], levels: Mapping[int, Levels] | None = None) -> list[tuple[int, ...]]:
    """Groups of ranks that do the same, and hold as much, at the same times; in order."""
    of_rank: dict[int, list[tuple[str, str, float, float]]] = {rank: [] for rank in levels or {}}
    for span in spans:
        of_rank.setdefault(span.rank, []).append((span.kind, span.name, span.start, span.end))
    groups: dict[object, list[int]] = {}
    for rank in sorted(of_rank):
        key = (tuple(sorted(of_rank[rank])), tuple((levels or {}).get(rank, ())))
        groups.setdefault(key, []).append(rank)
    return [tuple(ranks) for ranks in groups.values()]


def ranks_text(ranks: Sequence[int]) -> str:
    """`rank 3`, `ranks 0-7`, `ranks 0, 2`; of many ranges the first ones."""
    ranges: list[list[int]] = []
    for rank in ranks:
        if ranges and ranges[-1][-1] == rank - 1:
            ranges[-1][1:] = [rank]
        else:
            ranges.append([rank])
    texts = ["-".join(map(str, one)) for one in ranges]
    shown = ", ".join(texts[:2]) + (", ..." if len(texts) > 2 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _bar(span: Span, color: int, scale: float) -> Bar:
    width = max((span.end - span.start) * scale, 0.8)
    text = span.name if span.kind == "call" and width > CHARACTER * len(span.name) + 8 else ""
    sent = f", {size_text(span.bytes)}" if span.bytes else ""
    about = f"{DOES[span.kind]}{span.name}, {span.start:.4g} to {span.end:.4g} s{sent}"
    return Bar(round(LABELS + MARGIN + span.start * scale, 2), round(width, 2), span.kind, color, text, about)


def _curve(held: Levels, top: float, end: float, scale: float, highest: int) -> str:
    """The area under the levels, as a path."""
    if not held:
        return ""
    left, base = LABELS + MARGIN, top + MEMORY
    path = f"M{left} {base:g}"
    for (start, size), (until, _) in zip(held, [*held[1:], (end, 0)], strict=True):
        y = base - (MEMORY - 3) * min(1.0, size / highest)
        path += f"L{left + start * scale:.2f} {y:.2f}L{left + until * scale:.2f} {y:.2f}"
    return f"{path}L{left + end * scale:.2f} {base:g}Z"
