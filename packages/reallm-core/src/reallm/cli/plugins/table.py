"""The listing of `reallm plugins`, as a table for people and as plain data for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reallm.plugins import lookup_errors
from reallm.plugins.finder import CORE, DISABLE, Promise, canonical
from reallm.plugins.kinds import KINDS
from reallm.plugins.known import KnownDistribution, known_distributions
from reallm.plugins.loader import Loaded
from reallm.plugins.registry import Registry

COLORS = {"ok": "green", "failed": "red", "broken": "red", "blocked": "yellow", "conflict": "red"}


def state(loaded: Loaded) -> str:
    """`ok`, `failed` (in part or whole) or `blocked`."""
    if not loaded.plugin.active:
        return "blocked"
    return "failed" if loaded.failures else "ok"


def as_json(registry: Registry) -> dict[str, Any]:
    """The listing as JSON's types. Keys are only ever added.

    `offers` are the names that work, so names in conflict are not among them.
    """
    conflicts = registry.conflicts()
    return {
        "plugins": [
            {
                "distribution": loaded.plugin.distribution,
                "version": loaded.plugin.version,
                "editable": loaded.plugin.editable,
                "entry_points": list(loaded.plugin.entries),
                "blocked_entry_points": list(loaded.plugin.blocked),
                "value": loaded.plugin.value,
                "offers": [
                    {"kind": offer.kind, "name": offer.name}
                    for offer in loaded.offers
                    if (offer.kind, offer.name) not in conflicts
                ],
                "state": state(loaded),
                "failures": list(loaded.failures),
                "notes": list(loaded.notes),
            }
            for loaded in registry.listing()
        ],
        "conflicts": [
            {"kind": kind, "name": name, "distributions": [plugin.distribution for plugin in plugins]}
            for (kind, name), plugins in conflicts.items()
        ],
        "unknown_disabled": list(registry.plan.unknown_disabled),
        "broken": [dataclasses.asdict(broken) for broken in registry.plan.broken],
        "not_installed": [
            {"distribution": item.distribution, "offers": {kind: list(names) for kind, names in item.offers.items()}}
            for item in not_installed(registry)
        ],
    }


def not_installed(registry: Registry) -> list[KnownDistribution]:
    """Known distributions that are not installed."""
    present = {canonical(plugin.distribution) for plugin in registry.plan.plugins}
    return [item for item in known_distributions() if item.distribution not in present]


def show(registry: Registry) -> None:
    """Print the table, problems, and what could be installed, as wide as the terminal; a pipe is 80 columns wide."""
    console = Console(highlight=False)
    listing, conflicts = registry.listing(), registry.conflicts()
    rows = [_row(loaded, conflicts) for loaded in listing]
    # Names are long words: if they fit they are not broken, and the column of offers is wrapped instead.
    widths = {
        title: min(limit, max(_width(text) for text in (Text(title), *(row[title] for row in rows))))
        for title, limit in {"Distribution": 20, "Version": 10, "Entry point": 24, "State": 8}.items()
    }
    widths["Offers"] = max(12, console.width - sum(widths.values()) - 2 * len(widths))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("Distribution", "Version", "Entry point", "Offers", "State"):
        table.add_column(title, overflow="fold", max_width=widths[title])
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    _show_problems(console, registry)
    _show_installable(console, registry)


def _row(loaded: Loaded, conflicts: Iterable[Promise]) -> dict[str, Text]:
    plugin, word = loaded.plugin, state(loaded)
    return {
        "Distribution": Text(plugin.distribution),
        "Version": Text(plugin.version + ("\neditable" if plugin.editable else "")),
        "Entry point": Text(plugin.value),
        "Offers": _offers_text(loaded, conflicts),
        "State": Text(word, style=COLORS[word]),
    }


def _width(text: Text) -> int:
    return max(map(len, text.plain.split("\n")))


def _offers_text(loaded: Loaded, conflicts: Iterable[Promise]) -> Text:
    """A line for each kind of offers that work; offers that were promised but do not work are in parentheses."""
    offered = {(offer.kind, offer.name) for offer in loaded.offers}
    working = offered.difference(conflicts)
    others = (offered | {*loaded.plugin.promises, *loaded.plugin.blocked_promises}) - working
    return Text("\n").join(
        [*map(Text, by_kind(working)), *(Text(f"({line})", style="dim") for line in by_kind(others))],
    )


def by_kind(offers: Iterable[Promise]) -> list[str]:
    """`["dataset prompt", "families llama, mistral"]`."""
    names: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for kind, name in sorted(offers):
        names[kind].append(name)
    return [f"{KINDS[kind].plural if len(of) > 1 else kind} {', '.join(of)}" for kind, of in names.items() if of]


def _show_problems(console: Console, registry: Registry) -> None:
    """Print one unbroken line for each problem, so that `grep` shows all of it."""
    lines: list[tuple[str, str]] = []
    for loaded in registry.listing():
        lines += [("failed", f"{loaded.plugin}: {failure}") for failure in loaded.failures]
        if loaded.plugin.blocked:
            lines.append(("blocked", f"by {DISABLE}: {loaded.plugin.distribution}[{','.join(loaded.plugin.blocked)}]"))
    lines += [("broken", f"{broken.distribution}: {broken.reason}") for broken in registry.plan.broken]
    for (kind, name), plugins in registry.conflicts().items():
        lines.append(("conflict", str(lookup_errors.conflict(kind, name, plugins, registry.plan))))
    notes = [f"{loaded.plugin}: {note}" for loaded in registry.listing() for note in loaded.notes]
    unknown = [
        f"{DISABLE} has '{name}', but nothing with this name is installed" for name in registry.plan.unknown_disabled
    ]
    if lines or notes or unknown:
        console.print()
    for word, text in lines:
        console.print(Text.assemble((word, COLORS[word]), " ", text), soft_wrap=True)
    for note in (*notes, *unknown):
        console.print(Text(f"note: {note}"), soft_wrap=True)


def _show_installable(console: Console, registry: Registry) -> None:
    absent = not_installed(registry)
    if not absent:
        return
    only_core = all(plugin.distribution == CORE for plugin in registry.plan.plugins)
    console.print(
        "\nThe core trains nothing by itself: it needs a dataset and a model family,\n"
        "which are packages of their own. Install what you use:"
        if only_core
        else "\nNot installed:"
    )
    grid = Table.grid(padding=(0, 2, 0, 0))
    for item in absent:
        offers = [(kind, name) for kind, names in item.offers.items() for name in names]
        grid.add_row(f"  pip install {item.distribution}", "; ".join(by_kind(offers)))
    console.print(grid)
