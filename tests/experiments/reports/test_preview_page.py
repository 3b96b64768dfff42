"""The page of a preview: one file without scripts, in which each token says what it is."""

from __future__ import annotations

from reallm.data.preview.preview import Preview, PreviewedRow
from reallm.data.preview.samples import Sequence, Token
from reallm.experiments.reports.preview_page import render, write_preview_page


def page(*tokens: Token, **cut) -> str:
    row = PreviewedRow("1", "t.jsonl:1", (Sequence("", tokens, **cut),))
    dropped = PreviewedRow("2", "t.jsonl:2", (), "the prompt is empty")
    return render(Preview("rows", (row, dropped), "a report", 2, is_whole=True, lengths=(len(tokens),), n_trained=1))


def test_a_token_says_its_position_its_id_and_its_turn():
    html = page(Token(5, "Hi", False, False), Token(6, " you", True, False), Token(3, "<end>", True, True))
    assert '<span class="" title="0: id 5">Hi</span>' in html
    assert '<span class="trained first" title="1: id 6, trained"> you</span>' in html
    assert '<span class="trained special last" title="2: id 3, trained">&lt;end&gt;</span>' in html
    html = page(Token(6, "a", True, False), Token(5, "b", False, False), Token(6, "c", True, False))
    assert 'title="2: id 6, trained, turn 2"' in html


def test_pieces_of_characters_and_what_is_cut_or_dropped_are_shown():
    html = page(Token(5, "", False, False), Token(6, "é", False, False), n_cut=12)
    assert '<span class="piece" title="0: id 5, a piece of the character that follows">·</span>' in html
    assert "… 12 tokens were cut off here" in html
    assert "dropped: the prompt is empty" in html
    assert "a report" in html


def test_pairs_say_how_long_prompt_and_answer_are_and_notes_come_last():
    tokens = (Token(5, "Hi", False, False), Token(6, " you", True, False), Token(3, "<end>", True, True))
    sequences = tuple(Sequence(name, tokens, 1) for name in ("chosen", "rejected"))
    row = PreviewedRow("1", "t.jsonl:1", sequences, notes=("margin 2", "<b>\x07"))
    html = render(Preview("rows", (row,), "", 1, is_whole=True, lengths=(6,), n_trained=4))
    assert "chosen: 3 tokens, prompt 1, answer 2" in html
    assert "rejected: 3 tokens, prompt 1, answer 2" in html
    assert "margin 2; &lt;b&gt;\\x07" in html


def test_data_is_text_and_nothing_is_loaded(tmp_path):
    html = page(Token(5, "<script>alert(1)</script>\n\ud83d", False, False))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "src=" not in html
    write_preview_page(Preview("rows", (), "", 0, is_whole=True, lengths=(), n_trained=0), tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
