"""Output of `reallm preview`: on a terminal, or as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from reallm.data.dataset_stats import histogram
from reallm.data.preview.preview import Preview, PreviewedRow
from reallm.data.preview.samples import Sequence, Token
from reallm.experiments.reports.preview_text import (
    cut_text,
    dropped_text,
    lengths_text,
    measured_text,
    sequence_title,
    visible,
)

TRAINED, SPECIAL, NOTE = "green", "magenta", "yellow"
OPEN, CLOSE = "⟦", "⟧"
"""Marks around trained tokens where there is no colour."""


def print_preview(preview: Preview) -> None:
    """Print the rows, with what is trained in colour or between marks, and then the statistics."""
    console = Console(highlight=False)
    marks = console.no_color or console.color_system is None
    legend = f"trained tokens are {f'between {OPEN} and {CLOSE}' if marks else 'green'}, special tokens are written out"
    if console.is_terminal:
        legend += ", every second token is underlined"
    _print(console, Text(legend, style="dim"))
    for row in preview.rows:
        console.print()
        if row.dropped is not None:
            _print(console, _title(row.place, dropped_text(row), NOTE))
        for sequence in row.sequences:
            _print(console, _title(row.place, sequence_title(sequence), "dim"))
            _print(console, _tokens(sequence, marks=marks))
        if row.notes:
            _print(console, Text(visible("; ".join(row.notes)), style="dim"))
    console.print()
    for line in (preview.report, measured_text(preview), lengths_text(preview)):
        if line:
            _print(console, Text(line))


def to_json(preview: Preview) -> dict[str, Any]:
    """The output of `--json`. Keys are only ever added."""
    return {
        "dataset": preview.dataset,
        "report": preview.report,
        "n_measured": preview.n_measured,
        "is_whole": preview.is_whole,
        "n_samples": len(preview.lengths),
        "n_tokens": sum(preview.lengths),
        "n_trained": preview.n_trained,
        "lengths": histogram(preview.lengths) if preview.lengths else None,
        "rows": [_row_json(row) for row in preview.rows],
    }


def _row_json(row: PreviewedRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "place": row.place,
        "dropped": row.dropped,
        "notes": list(row.notes),
        "sequences": [
            {
                "name": sequence.name,
                "n_tokens": len(sequence.tokens),
                "n_trained": sequence.n_trained,
                "n_prompt": sequence.n_prompt,
                "n_cut": sequence.n_cut,
                "cut_at": sequence.cut_at if sequence.n_cut else None,
                "turns": [list(turn) for turn in sequence.turns],
                "tokens": [
                    {"id": one.id, "text": one.text, "trained": one.is_trained, "special": one.is_special}
                    for one in sequence.tokens
                ],
            }
            for sequence in row.sequences
        ],
    }


def _print(console: Console, text: Text) -> None:
    console.print(text, soft_wrap=True)


def _title(place: str, about: str, style: str) -> Text:
    return Text.assemble((place, "bold"), "  ", (about, style))


def _tokens(sequence: Sequence, *, marks: bool) -> Text:
    text = Text()
    if sequence.n_cut and sequence.cut_at == "start":
        text.append(f"{cut_text(sequence)}\n", NOTE)
    inside = False
    for number, (run, token) in enumerate(_runs(sequence.tokens)):
        if marks and token.is_trained != inside:
            text.append(OPEN if token.is_trained else CLOSE)
            inside = token.is_trained
        text.append(visible(token.text), _style(token, underline=number % 2 == 1))
        if run > 1:
            text.append(f" ({run:,} times) ", "dim")
    if inside:
        text.append(CLOSE)
    if sequence.n_cut and sequence.cut_at == "end":
        text.append(f"\n{cut_text(sequence)}", NOTE)
    return text


def _style(token: Token, *, underline: bool) -> str:
    color = [TRAINED] if token.is_trained else [SPECIAL] if token.is_special else []
    return " ".join([*color, *["bold"] * (token.is_special and token.is_trained), *["underline"] * underline])


def _runs(tokens: tuple[Token, ...]) -> list[tuple[int, Token]]:
    """The tokens, and how often each is repeated; only padding is told by its number."""
    runs: list[tuple[int, Token]] = []
    for token in tokens:
        if runs and token.is_special and not token.is_trained and runs[-1][1] == token:
            runs[-1] = (runs[-1][0] + 1, token)
        else:
            runs.append((1, token))
    return runs
