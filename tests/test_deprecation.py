"""What is deprecated says so once, at the plugin's line, with what takes its place; a plugin works on meanwhile."""

from __future__ import annotations

import ast
import pickle
import sys
import warnings
from pathlib import Path

import pytest

import reallm
from reallm.deprecation import HookDeprecationWarning, collect_deprecations, deprecated
from reallm.hookspecs import HOOK_API
from reallm.plugins.finder import Plugin
from reallm.plugins.loader import load
from workspace import ROOT

TEXT = "the field 'a' is deprecated since hook API 1.1 and will be removed in 2.0; use 'b'"

OLD_PLUGIN = """
from reallm import DatasetSpec, hookimpl
from reallm.{made_up} import use_old_field

SPEC = use_old_field(DatasetSpec("somewhere:Dataset", "somewhere:Config"))


@hookimpl
def reallm_datasets():
    use_old_field(SPEC)
    return {{"x": SPEC}}
"""


def use_old_field(value=None, stacklevel=None):
    deprecated("the field 'a'", instead="'b'", since="1.1", removed_in="2.0", stacklevel=stacklevel)
    return value


@pytest.fixture
def old_plugin(tmp_path, monkeypatch):
    """A plugin that uses a deprecated name of the core, twice: when it is imported and in its hook."""
    (tmp_path / "old_plugin.py").write_text(OLD_PLUGIN.format(made_up="made_up"), encoding="utf-8")
    core = type(sys)("reallm.made_up")
    exec(
        "from reallm.deprecation import deprecated\n"
        "def use_old_field(value):\n"
        '    deprecated("the field \'a\'", instead="\'b\'", since="1.1", removed_in="2.0")\n'
        "    return value\n",
        vars(core),
    )
    monkeypatch.setitem(sys.modules, "reallm.made_up", core)
    monkeypatch.syspath_prepend(tmp_path)
    yield Plugin("reallm-old", "1.0", "old_plugin", ("dataset.x",))
    sys.modules.pop("old_plugin", None)


def test_a_warning_says_what_since_when_until_when_and_what_instead():
    with pytest.warns(HookDeprecationWarning) as caught:
        use_old_field(stacklevel=1)
    assert str(caught[0].message).startswith(f"{TEXT} (tests/test_deprecation.py:")


def test_it_is_a_deprecation_warning_as_python_and_pytest_treat_them():
    with pytest.warns(DeprecationWarning, match="use 'b'"):
        use_old_field()


@pytest.mark.parametrize("stacklevel", [None, 1, 2])
def test_it_is_shown_once_for_each_line(stacklevel):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            use_old_field(stacklevel=stacklevel)
    assert len(caught) == 1


def test_the_line_that_is_blamed_is_the_one_the_caller_chooses():
    with pytest.warns(HookDeprecationWarning) as caught:
        use_old_field(stacklevel=2)
    here = sys._getframe().f_lineno - 1
    assert (caught[0].filename, caught[0].lineno) == (__file__, here)


def test_a_plugin_works_on_and_each_line_is_a_note_that_says_where(old_plugin):
    with pytest.warns(HookDeprecationWarning) as caught:
        loaded = load(old_plugin)
    assert [offer.name for offer in loaded.offers] == ["x"]
    assert loaded.failures == ()
    folder = Path(sys.modules["old_plugin"].__file__).parent.name
    assert loaded.notes == (f"{TEXT} ({folder}/old_plugin.py:5)", f"{TEXT} ({folder}/old_plugin.py:10)")
    assert [str(warning.message) for warning in caught] == [
        f"reallm-old 1.0 (old_plugin): {note}" for note in loaded.notes
    ]


def test_the_same_line_is_one_note_however_often_it_runs(old_plugin, tmp_path):
    path = tmp_path / "old_plugin.py"
    path.write_text(path.read_text().replace("    use_old_field(SPEC)", "    [use_old_field(SPEC) for _ in range(5)]"))
    with pytest.warns(HookDeprecationWarning):
        assert len(load(old_plugin).notes) == 2


def test_whoever_makes_warnings_errors_gets_a_failed_plugin_and_no_exception(old_plugin):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(old_plugin)
    assert loaded.offers == ()
    (failure,) = loaded.failures
    assert failure.startswith(f"reallm-old 1.0 (old_plugin): {TEXT}")


def test_other_warnings_of_a_plugin_go_their_usual_way():
    def load_it():
        with collect_deprecations() as collected:
            warnings.warn("mine", UserWarning, stacklevel=1)
            use_old_field()
        return collected

    with pytest.warns(UserWarning, match="mine") as caught:
        heard = load_it()
    assert [entry.category for entry in caught] == [UserWarning]
    assert [warning.message for warning in heard] == [TEXT]


def test_a_warning_survives_pickling_as_data_loader_workers_need():
    warning = HookDeprecationWarning("text", "/some/where.py", 3)
    assert str(pickle.loads(pickle.dumps(warning))) == "text (some/where.py:3)"


@pytest.mark.parametrize(("since", "removed_in"), [("1.1", "1.2"), ("2.0", "2.0"), ("1", "2.0")])
def test_a_deprecation_against_the_policy_is_a_broken_invariant(since, removed_in):
    with pytest.raises(AssertionError):
        deprecated("it", instead="that", since=since, removed_in=removed_in)


def test_nothing_is_deprecated_by_a_later_version_nor_kept_beyond_its_time():
    sources = [*Path(reallm.__file__).parent.rglob("*.py"), *(ROOT / "packages").glob("*/src/**/*.py")]
    calls = [
        node
        for source in sources
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "deprecated"
    ]
    for call in calls:
        given = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords if keyword.arg != "instead"}
        since, removed_in = (tuple(map(int, given[name].split("."))) for name in ("since", "removed_in"))
        assert since <= HOOK_API < removed_in, ast.unparse(call)
