"""What `reallm realloc` prints: a table of the ranks, or of the busiest of many, and what it all amounts to."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from reallm.reallocation.cost import Figures

SHOWN = 8
"""More ranks or pairs are not listed, only the busiest of them."""


UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


def as_json_object(figures: Figures) -> dict[str, Any]:
    """The figures as JSON's types. Keys are only ever added."""
    made, itemsize = figures.plan, figures.itemsize
    return {
        "model": figures.path,
        "dtype": figures.dtype,
        "from": str(figures.source),
        "to": str(figures.target),
        "sent_bytes": figures.total,
        "lower_bound_bytes": itemsize * made.lower_bound,
        "kept_bytes": sum(map(figures.kept, made.ranks)),
        "messages": made.n_messages,
        "most_sent_bytes": itemsize * made.most_sent,
        "most_sent_bytes_at_best": itemsize * made.min_max_sent,
        "most_received_bytes": max(map(figures.received, made.ranks)),
        "bandwidth_bytes_per_second": figures.bandwidth,
        "seconds": figures.seconds,
        "ranks": [
            {
                "rank": rank,
                "sent_bytes": figures.sent(rank),
                "received_bytes": figures.received(rank),
                "kept_bytes": figures.kept(rank),
            }
            for rank in made.ranks
        ],
        "pairs": [{"from": source, "to": target, "bytes": itemsize * n} for (source, target), n in made.pairs.items()],
    }


def show(figures: Figures) -> None:
    """Print it all; as wide as the terminal, a pipe being 80 columns."""
    console = Console(highlight=False)
    console.print(Text(f"{figures.path}, {figures.dtype}"), soft_wrap=True)
    console.print(Text(f"from {figures.source} to {figures.target}"), soft_wrap=True)
    console.print()
    if figures.total:
        matrix = _matrix(figures, console.width)
        console.print(matrix or _pairs(figures))
        if matrix is None:
            _say_more(console, len(figures.plan.pairs), "pairs")
        console.print()
    console.print(_ranks(figures))
    _say_more(console, len(figures.plan.ranks), "ranks")
    console.print()
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for title, text in _summary(figures):
        grid.add_row(title, Text(text))
    console.print(grid)


def _matrix(figures: Figures, width: int) -> Table | None:
    """Rows of senders, columns of receivers; None if they are too many for the terminal."""
    pairs = figures.plan.pairs
    senders, receivers = sorted({pair[0] for pair in pairs}), sorted({pair[1] for pair in pairs})
    if max(len(senders), len(receivers)) > SHOWN:
        return None
    table = _table("Bytes", *(f"to {rank}" for rank in receivers))
    for a in senders:
        table.add_row(f"from {a}", *(size(figures.itemsize * pairs.get((a, b), 0)) for b in receivers))
    endless = Console(width=10_000)
    return table if Measurement.get(endless, endless.options, table).maximum <= width else None


def _pairs(figures: Figures) -> Table:
    pairs = sorted(figures.plan.pairs.items(), key=lambda item: (-item[1], item[0]))
    table = _table("Pair", "Bytes")
    for (source, target), n in pairs[:SHOWN]:
        table.add_row(f"{source} to {target}", size(figures.itemsize * n))
    return table


def _ranks(figures: Figures) -> Table:
    ranks = sorted(figures.plan.ranks, key=lambda rank: (-max(figures.sent(rank), figures.received(rank)), rank))
    table = _table("Rank", "Sends", "Receives", "Keeps")
    for rank in sorted(ranks) if len(ranks) <= SHOWN else ranks[:SHOWN]:
        table.add_row(str(rank), *map(size, (figures.sent(rank), figures.received(rank), figures.kept(rank))))
    return table


def _table(first: str, *titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(first, no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    return table


def _say_more(console: Console, n: int, what: str) -> None:
    if n > SHOWN:
        console.print(f"the busiest of {n:,} {what}", style="dim")


def _summary(figures: Figures) -> list[tuple[str, str]]:
    made = figures.plan
    kept = sum(map(figures.kept, made.ranks))
    if not figures.total:
        return [("Sent", "nothing: every rank has already what it is to have"), ("Kept", size(kept))]
    above = made.most_sent / made.min_max_sent - 1
    best = f"{100 * above:.1f} % above" if above >= 0.0005 else "no more than"
    return [
        ("Sent", f"{size(figures.total)}, the lower bound: no rank is sent what it has"),
        ("Kept", size(kept)),
        ("Busiest sender", f"{size(figures.itemsize * made.most_sent)}, {best} what some rank must send"),
        ("Busiest receiver", size(max(map(figures.received, made.ranks)))),
        ("Messages", f"{made.n_messages:,} of {size(figures.total / made.n_messages)} on average"),
        ("Time", f"{duration(figures.seconds)} at {size(figures.bandwidth)}/s each way, by rank {figures.busiest}"),
    ]


def size(n_bytes: float) -> str:
    """Three digits: `950 B`, `12.3 KB`, `1.24 GB`, 1 KB being 1,000 bytes; `-` for none."""
    if not n_bytes:
        return "-"
    place = 0
    while n_bytes >= 999.5 and place < len(UNITS) - 1:
        n_bytes, place = n_bytes / 1000, place + 1
    return f"{n_bytes:.3g} {UNITS[place]}"


def duration(seconds: float) -> str:
    """Three digits: `85.3 µs`, `1.24 s`."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 0.9995:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.2g} µs"
