"""How a preview looks on a terminal, with and without colours."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from reallm.cli import preview_view
from reallm.data.preview.preview import Preview, PreviewedRow
from reallm.data.preview.samples import Sequence, Token

PAD = Token(4, "<pad>", False, True)
ANSWER = (Token(7, " x", True, False), Token(3, "<end>", True, True))
SEQUENCE = Sequence("", (Token(5, "a\n", False, False), *ANSWER, PAD, PAD, PAD), n_cut=1)
PREVIEW = Preview(
    "rows",
    (PreviewedRow("1", "t.jsonl:1", (SEQUENCE,)), PreviewedRow("2", "t.jsonl:2", (), "longer than 8 tokens")),
    "t.jsonl: 2 rows -> 1 sample",
    2,
    is_whole=False,
    lengths=(6,),
    n_trained=2,
)


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch):
    """Prints a preview on a console with these options."""

    def show(preview: Preview = PREVIEW, **options) -> str:
        out = io.StringIO()
        monkeypatch.setattr(preview_view, "Console", lambda **given: Console(file=out, width=200, **given, **options))
        preview_view.print_preview(preview)
        return out.getvalue()

    return show


def test_without_colours_marks_say_what_is_trained(printed):
    assert printed().splitlines() == [
        "trained tokens are between ⟦ and ⟧, special tokens are written out",
        "",
        "t.jsonl:1  6 tokens, 2 of them trained",
        "a↵",
        "⟦ x<end>⟧<pad> (3 times) ",
        "… 1 token was cut off here",
        "",
        "t.jsonl:2  dropped: longer than 8 tokens",
        "",
        "t.jsonl: 2 rows -> 1 sample",
        "these are the first 2 rows; there are more",
        "lengths in tokens: shortest 6, median 6, mean 6.0, 95th percentile 6, longest 6; 33 % of them are trained",
    ]


def test_a_terminal_has_colours_unless_told_otherwise(printed, monkeypatch):
    colours = {"force_terminal": True, "color_system": "standard"}
    assert "\x1b[4;32m x\x1b[0m\x1b[1;32m<end>\x1b[0m" in printed(**colours)
    assert "⟦" not in printed(**colours)
    assert "trained tokens are green" in printed(**colours)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "⟦\x1b[4m x" in printed(**colours)


def test_data_cannot_control_the_terminal(printed):
    token = Token(9, "\x1b[2J\a[bold]\u202e🧑\u200d🚀", False, False)
    row = PreviewedRow("1", "a", (Sequence("", (token,)),))
    out = printed(Preview("rows", (row,), "", 1, is_whole=True, lengths=(1,), n_trained=0))
    assert r"\x1b[2J\x07[bold]\u202e" + "🧑\u200d🚀" in out


def test_pairs_are_one_after_another_with_the_lengths_of_their_prompts(printed):
    sequences = tuple(Sequence(name, (Token(5, "a", False, False), *ANSWER), 1) for name in ("chosen", "rejected"))
    row = PreviewedRow("1", "t.jsonl:1", sequences, notes=("margin 2", "source=\x1b"))
    preview = Preview("p", (row,), "", 1, is_whole=True, lengths=(6,), n_trained=4)
    assert printed(preview).splitlines()[2:7] == [
        "t.jsonl:1  chosen: 3 tokens, prompt 1, answer 2",
        "a⟦ x<end>⟧",
        "t.jsonl:1  rejected: 3 tokens, prompt 1, answer 2",
        "a⟦ x<end>⟧",
        "margin 2; source=\\x1b",
    ]
    (shown,) = preview_view.to_json(preview)["rows"]
    assert shown["notes"] == ["margin 2", "source=\x1b"]
    assert [one["n_prompt"] for one in shown["sequences"]] == [1, 1]


def test_a_prompt_that_lost_its_beginning_says_so_there(printed):
    sequence = Sequence("prompt", (Token(5, "b", False, False),), n_cut=3, cut_at="start")
    out = printed(Preview("p", (PreviewedRow("1", "a", (sequence,)),), "", 1, is_whole=True, lengths=(1,), n_trained=0))
    assert out.splitlines()[2:5] == ["a  prompt: 1 token", "… 3 tokens were cut off here", "b"]
