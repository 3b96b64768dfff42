"""Output of `reallm realloc`: tables of pairs and ranks, or of the busiest of many, and a summary; or JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from reallm.cli.tables import duration, numbers_table, size
from reallm.parallel.layout import Layout
from reallm.reallocation.cost import PlanCost

MAX_ROWS = 8
"""Maximum number of ranks or pairs to list; of more, only the busiest are listed."""


@dataclass(frozen=True)
class Move:
    """A planned reallocation: a model, two layouts, and the cost."""

    path: str
    dtype: str
    source: Layout
    target: Layout
    cost: PlanCost


def to_json(move: Move) -> dict[str, Any]:
    """The output of `--json`. Keys are only ever added."""
    cost, plan = move.cost, move.cost.plan
    return {
        "model": move.path,
        "dtype": move.dtype,
        "from": str(move.source),
        "to": str(move.target),
        "sent_bytes": cost.total_sent,
        "lower_bound_bytes": cost.itemsize * plan.lower_bound,
        "kept_bytes": cost.total_kept,
        "messages": plan.n_messages,
        "most_sent_bytes": cost.max_sent,
        "most_sent_bytes_at_best": cost.min_max_sent,
        "most_received_bytes": cost.max_received,
        "bandwidth_bytes_per_second": cost.bandwidth,
        "seconds": cost.seconds,
        "ranks": [
            {
                "rank": rank,
                "sent_bytes": cost.sent(rank),
                "received_bytes": cost.received(rank),
                "kept_bytes": cost.kept(rank),
            }
            for rank in plan.ranks
        ],
        "pairs": [
            {"from": source, "to": target, "bytes": cost.itemsize * numel}
            for (source, target), numel in plan.elements_by_pair.items()
        ],
    }


def print_move(move: Move) -> None:
    """Print tables and summary as wide as the terminal; a pipe is 80 columns wide."""
    cost, console = move.cost, Console(highlight=False)
    console.print(Text(f"{move.path}, {move.dtype}"), soft_wrap=True)
    console.print(Text(f"from {move.source.short} to {move.target.short}"), soft_wrap=True)
    console.print()
    if cost.total_sent:
        matrix = _matrix(cost, console.width)
        console.print(matrix or _pairs(cost))
        if matrix is None:
            _print_if_cut(console, len(cost.plan.elements_by_pair), "pairs")
        console.print()
    console.print(_ranks(cost))
    _print_if_cut(console, len(cost.plan.ranks), "ranks")
    console.print()
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for title, text in _summary(cost):
        grid.add_row(title, Text(text))
    console.print(grid)


def _matrix(cost: PlanCost, width: int) -> Table | None:
    """Table with a row for each sender and a column for each receiver; None if it is too large for the terminal."""
    pairs = cost.plan.elements_by_pair
    senders, receivers = sorted({pair[0] for pair in pairs}), sorted({pair[1] for pair in pairs})
    if max(len(senders), len(receivers)) > MAX_ROWS:
        return None
    table = numbers_table("Bytes", *(f"to {rank}" for rank in receivers))
    for a in senders:
        table.add_row(f"from {a}", *(size(cost.itemsize * pairs.get((a, b), 0)) for b in receivers))
    unlimited = Console(width=10_000)
    return table if Measurement.get(unlimited, unlimited.options, table).maximum <= width else None


def _pairs(cost: PlanCost) -> Table:
    pairs = sorted(cost.plan.elements_by_pair.items(), key=lambda item: (-item[1], item[0]))
    table = numbers_table("Pair", "Bytes")
    for (source, target), numel in pairs[:MAX_ROWS]:
        table.add_row(f"{source} to {target}", size(cost.itemsize * numel))
    return table


def _ranks(cost: PlanCost) -> Table:
    ranks = sorted(cost.plan.ranks, key=lambda rank: (-max(cost.sent(rank), cost.received(rank)), rank))
    table = numbers_table("Rank", "Sends", "Receives", "Keeps")
    for rank in sorted(ranks) if len(ranks) <= MAX_ROWS else ranks[:MAX_ROWS]:
        table.add_row(str(rank), *map(size, (cost.sent(rank), cost.received(rank), cost.kept(rank))))
    return table


def _print_if_cut(console: Console, n: int, what: str) -> None:
    if n > MAX_ROWS:
        console.print(f"the busiest of {n:,} {what}", style="dim")


def _summary(cost: PlanCost) -> list[tuple[str, str]]:
    if not cost.total_sent:
        return [("Sent", "nothing: every rank already holds what it needs"), ("Kept", size(cost.total_kept))]
    excess = cost.max_sent / cost.min_max_sent - 1
    compared = f"{100 * excess:.1f} % above" if excess >= 0.0005 else "no more than"
    n_messages = cost.plan.n_messages
    return [
        ("Sent", f"{size(cost.total_sent)}, the lower bound: no rank is sent what it already holds"),
        ("Kept", size(cost.total_kept)),
        ("Busiest sender", f"{size(cost.max_sent)}, {compared} what some rank must send"),
        ("Busiest receiver", size(cost.max_received)),
        ("Messages", f"{n_messages:,} of {size(cost.total_sent / n_messages)} on average"),
        (
            "Time",
            f"{duration(cost.seconds)} at {size(cost.bandwidth)}/s in each direction, by rank {cost.busiest_rank}",
        ),
    ]
