"""Renders a preview of data as one HTML file without scripts; pointing at a token shows its id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reallm.atomic_files import atomic_write
from reallm.data.dataset_stats import histogram
from reallm.data.preview.preview import Preview, PreviewedRow
from reallm.data.preview.samples import Sequence
from reallm.experiments.reports.charts import bar_chart
from reallm.experiments.reports.preview_text import (
    cut_text,
    dropped_text,
    lengths_text,
    measured_text,
    sequence_title,
    visible,
)
from reallm.experiments.reports.templates import template


@dataclass(frozen=True)
class ShownToken:
    """A token as the page shows it: text, CSS classes, and what is said about it."""

    text: str
    css: str
    about: str


@dataclass(frozen=True)
class ShownSequence:
    """A sequence as the page shows it."""

    title: str
    tokens: list[ShownToken]
    cut: str
    cut_at: str


@dataclass(frozen=True)
class ShownRow:
    """A row as the page shows it."""

    place: str
    dropped: str
    sequences: list[ShownSequence]
    notes: list[str]


def write_preview_page(preview: Preview, path: Path) -> None:
    """Write the page of a preview.

    Raises:
        DataError: the page cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(render(preview).encode(errors="replace"))


def render(preview: Preview) -> str:
    """The page of a preview as HTML."""
    bins = histogram(preview.lengths) if preview.lengths else None
    return template("preview.html.j2").render(
        dataset=preview.dataset,
        report=preview.report,
        notes=[text for text in (measured_text(preview), lengths_text(preview)) if text],
        chart=bar_chart(bins["edges"], bins["counts"], "tokens") if bins else None,
        rows=[_row(row) for row in preview.rows],
    )


def _row(row: PreviewedRow) -> ShownRow:
    dropped = "" if row.dropped is None else dropped_text(row)
    return ShownRow(
        row.place, dropped, [_sequence(one) for one in row.sequences], [visible(note) for note in row.notes]
    )


def _sequence(sequence: Sequence) -> ShownSequence:
    turn_of = {
        position: number for number, (start, end) in enumerate(sequence.turns, 1) for position in range(start, end)
    }
    starts = {start for start, _ in sequence.turns}
    ends = {end - 1 for _, end in sequence.turns}
    tokens = []
    for position, token in enumerate(sequence.tokens):
        css = ["trained"] * token.is_trained + ["special"] * token.is_special
        css += ["first"] * (position in starts) + ["last"] * (position in ends)
        about = f"{position}: id {token.id}"
        if token.is_trained:
            about += f", trained{f', turn {turn_of[position]}' if len(starts) > 1 else ''}"
        if not token.text:
            css, about = [*css, "piece"], f"{about}, a piece of the character that follows"
        tokens.append(ShownToken(visible(token.text) or "·", " ".join(css), about))
    cut = cut_text(sequence) if sequence.n_cut else ""
    return ShownSequence(sequence_title(sequence), tokens, cut, sequence.cut_at)
