"""Settings of runs, read for comparison."""

from __future__ import annotations

from reallm.experiments.runs.comparison import flat_settings


def test_settings_are_read_by_dotted_key(tmp_path):
    (tmp_path / "config.yaml").write_text("a:\n  b: {c: 1, d: []}\n  e: null\nf: {}\n")
    assert flat_settings(tmp_path / "config.yaml") == {"a.b.c": 1, "a.b.d": [], "a.e": None, "f": {}}
    (tmp_path / "config.yaml").write_text("a: [")
    assert flat_settings(tmp_path / "config.yaml") is None
