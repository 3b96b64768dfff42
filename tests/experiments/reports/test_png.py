"""Curves drawn as pictures."""

from __future__ import annotations

import pytest

from reallm.experiments.reports.png import Panel, save_panels


@pytest.mark.parametrize("n", [1, 2, 60, 5000])
def test_curves_of_any_length_can_be_drawn(tmp_path, n):
    points = [(step, 1.0 / step) for step in range(1, n + 1)]
    save_panels([Panel("loss", {"A": points, "B": points[:1]})], tmp_path / "a.png", x_label="step")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["a\x1b[31m\u202eb", "$x^{$", "$\\frac$", "\u6f22\u5b57"])
def test_names_of_any_characters_are_drawn_without_a_warning(tmp_path, name, recwarn):
    save_panels([Panel(name, {name: [(1, 1.0)]})], tmp_path / "a.png", x_label="step")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert not recwarn.list
