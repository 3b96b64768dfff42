"""What `reallm plugins` prints: at 80 columns, in a pipe, as JSON."""

from __future__ import annotations

import json

import pytest

from reallm.cli.main import run
from reallm.cli.plugins import app as plugins
from reallm.cli.plugins import table as plugins_table
from reallm.plugins.finder import Entry, plan
from reallm.plugins.loader import Loaded, Offer
from reallm.plugins.registry import Registry
from reallm.specs import DatasetSpec

REASON = "needs the module 'a_module_with_a_long_name', which is not installed; pip install a_module_with_a_long_name"

NOTE = "the field 'a' is deprecated since hook API 1.1 and will be removed in 2.0; use 'b' (reallm_old/plugin.py:3)"


def loader(plugin):
    if plugin.distribution == "reallm-broken":
        return Loaded(plugin, failures=(REASON,))
    spec = DatasetSpec("somewhere:Dataset", "somewhere_else_entirely:Config", "for this test")
    notes = (NOTE,) if plugin.distribution == "reallm-old" else ()
    return Loaded(plugin, tuple(Offer(kind, name, spec, plugin) for kind, name in plugin.promises), notes=notes)


@pytest.fixture
def installed(monkeypatch):
    """Puts plugins in the place of those that are installed: distribution -> entry points."""
    monkeypatch.setenv("COLUMNS", "80")

    def put(disabled: str = "", **distributions: list[str]) -> Registry:
        entries = [
            Entry(f"reallm-{name}", "1.0.0", entry, f"reallm_{name}.plugin", editable=name == "mine")
            for name, entries in distributions.items()
            for entry in entries
        ]
        found = Registry(plan(entries, disabled), loader)
        monkeypatch.setattr(plugins, "registry", lambda: found)
        return found

    return put


def test_the_table_has_a_row_for_each_plugin_in_80_columns(installed, capsys):
    installed(core=["dataset.a"], mine=["dataset.b", "dataset.c"])
    assert run(["plugins"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    rows = [line.split() for line in out.splitlines()]
    assert ["Distribution", "Version", "Entry", "point", "Offers", "State"] in rows
    assert ["reallm-core", "1.0.0", "reallm_core.plugin", "dataset", "a", "ok"] in rows
    assert ["reallm-mine", "1.0.0", "reallm_mine.plugin", "datasets", "b,", "c", "ok"] in rows


def test_a_failure_is_one_line_with_its_reason_and_gives_exit_code_1(installed, capsys):
    installed(core=["dataset.a"], broken=["dataset.b"])
    assert run(["plugins"]) == 1
    assert f"failed reallm-broken 1.0.0 (reallm_broken.plugin): {REASON}" in capsys.readouterr().out.splitlines()


def test_what_a_plugin_should_not_do_any_more_is_a_note_and_no_failure(installed, capsys):
    installed(core=["dataset.a"], old=["dataset.b"])
    assert run(["plugins"]) == 0
    out = capsys.readouterr().out
    assert f"note: reallm-old 1.0.0 (reallm_old.plugin): {NOTE}" in out.splitlines()
    assert "failed" not in out
    assert run(["plugins", "show", "reallm-old"]) == 0
    assert "the field 'a' is deprecated" in " ".join(capsys.readouterr().out.split())
    assert run(["plugins", "--json"]) == 0
    rows = {row["distribution"]: row for row in json.loads(capsys.readouterr().out)["plugins"]}
    assert (rows["reallm-old"]["state"], rows["reallm-old"]["notes"]) == ("ok", [NOTE])


def test_a_conflict_is_shown_with_its_remedy(installed, capsys):
    installed(one=["dataset.a", "dataset.b"], two=["dataset.a"])
    assert run(["plugins"]) == 0
    out = capsys.readouterr().out
    assert "(dataset a)" in out
    assert "conflict the dataset 'a' is offered by reallm-one 1.0.0" in out
    assert "REALLM_DISABLE_PLUGINS='reallm-two[dataset.a]'" in out


def test_what_is_blocked_is_shown_and_what_blocks_nothing_too(installed, capsys):
    installed("reallm-one,reallm-on", one=["dataset.a"])
    assert run(["plugins"]) == 0
    out = capsys.readouterr().out
    assert "blocked by REALLM_DISABLE_PLUGINS: reallm-one[dataset.a]" in out.splitlines()
    assert "note: REALLM_DISABLE_PLUGINS has 'reallm-on', but nothing with this name is installed" in out.splitlines()


def test_the_core_alone_says_what_to_install(installed, capsys):
    installed(core=["algorithm.sft"])
    assert run(["plugins"]) == 0
    out = capsys.readouterr().out
    assert "needs a dataset and a model family" in out
    for distribution in ("reallm-datasets", "reallm-hf-llama", "reallm-hf-mistral"):
        assert f"pip install {distribution} " in out
    assert max(map(len, out.splitlines())) <= 80


def test_even_without_any_plugin_it_says_what_to_install(installed, capsys):
    installed()
    assert run(["plugins"]) == 0
    assert "pip install reallm-datasets" in capsys.readouterr().out


@pytest.mark.parametrize("columns", ["40", "60", "200"])
def test_it_fits_the_width_it_is_given(installed, capsys, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    installed(datasets=["dataset.a"], with_quite_a_long_name=["dataset.b", "dataset.another"])
    assert run(["plugins"]) == 0
    table = capsys.readouterr().out.split("Not installed:")[0]
    assert max(map(len, table.splitlines())) <= int(columns)


def test_json_has_everything_under_stable_keys(installed, capsys):
    installed("reallm-off", mine=["dataset.a"], broken=["dataset.b"], off=["dataset.c"])
    assert run(["plugins", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["plugins", "conflicts", "unknown_disabled", "broken", "not_installed"]
    rows = {row["distribution"]: row for row in found["plugins"]}
    assert rows["reallm-mine"] == {
        "distribution": "reallm-mine",
        "version": "1.0.0",
        "editable": True,
        "entry_points": ["dataset.a"],
        "blocked_entry_points": [],
        "value": "reallm_mine.plugin",
        "offers": [{"kind": "dataset", "name": "a"}],
        "state": "ok",
        "failures": [],
        "notes": [],
    }
    assert (rows["reallm-broken"]["state"], rows["reallm-broken"]["failures"]) == ("failed", [REASON])
    assert rows["reallm-off"]["state"] == "blocked"


def test_show_explains_even_a_dataset_whose_configuration_is_broken(installed, capsys):
    installed(one=["dataset.a"])
    assert run(["plugins", "show", "a"]) == 0
    out = capsys.readouterr().out
    assert "dataset a" in out
    assert "for this test" in out
    assert "cannot import 'somewhere_else_entirely:Config'" in out


def test_show_takes_a_distribution(installed, capsys):
    installed(broken=["dataset.a"])
    assert run(["plugins", "show", "Reallm_Broken"]) == 0
    out = capsys.readouterr().out
    assert "reallm-broken" in out
    assert "failed" in out
    assert "a_module_with_a_long_name" in out


def test_show_of_an_unknown_name_names_the_nearest(installed, capsys):
    installed(one=["dataset.riddles"])
    assert run(["plugins", "show", "ridles"]) == 2
    assert (
        "error: no installed plugin offers anything named 'ridles'; did you mean 'riddles'?" in capsys.readouterr().err
    )


def test_what_is_offered_is_grouped_by_kind():
    offers = [("family", "b"), ("dataset", "x"), ("family", "a")]
    assert plugins_table.by_kind(offers) == ["dataset x", "families a, b"]
