"""Plugins that import classes of `reallm.hf.tables` under their old names get them, and a note of the new ones."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from reallm.deprecation import HookDeprecationWarning
from reallm.hf import tables
from reallm.plugins.finder import Plugin
from reallm.plugins.loader import load

PLUGIN = """
from reallm.hf.tables import Row, Stored

from reallm import hookimpl

SOURCE = Stored("model.embed_tokens")


@hookimpl
def reallm_hf_families():
    return []
"""


def test_a_plugin_with_old_names_works_and_its_line_is_named(tmp_path, monkeypatch):
    (tmp_path / "plugin_with_old_names.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(HookDeprecationWarning):
        loaded = load(Plugin("reallm-old", "1.0", "plugin_with_old_names", ("plugin",)))
    module = sys.modules.pop("plugin_with_old_names")
    where = f"({Path(module.__file__).parent.name}/plugin_with_old_names.py:2)"
    until = "is deprecated since hook API 1.1 and will be removed in 2.0; use"
    assert loaded.failures == ()
    assert loaded.notes == (
        f"reallm.hf.tables.Row {until} 'FieldRow' {where}",
        f"reallm.hf.tables.Stored {until} 'Source' {where}",
    )
    assert tables.Source("model.embed_tokens") == module.SOURCE


def test_old_names_are_not_listed():
    assert not {"Row", "Stored"} & {*tables.__all__, *dir(tables)}


def test_any_other_name_is_missing_as_usual():
    with pytest.raises(AttributeError, match=r"^module 'reallm\.hf\.tables' has no attribute 'Rows'$"):
        tables.Rows
