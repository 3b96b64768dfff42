"""Without reallm-devkit the core works, and what needs it says in one line what to install."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import PathFinder

import pytest

from reallm.cli.main import run
from reallm.errors import ReallmError
from reallm.plugins.devkit import import_devkit

HIDE = """
import sys

class Hidden:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "reallm_devkit":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden)
"""
"""Has Python find no `reallm_devkit`, as where it is not installed."""


def forget_devkit(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "reallm_devkit"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def _no_devkit(monkeypatch):
    forget_devkit(monkeypatch)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    exec(HIDE, {})


@pytest.mark.usefixtures("_no_devkit")
@pytest.mark.parametrize(
    ("command", "arguments"), [("check", ["jsonl"]), ("new", ["dataset", "my-data"]), ("new", ["nonsense", "x"])]
)
def test_a_command_that_needs_it_says_what_to_install(command, arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["plugins", command, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err == f"error: reallm plugins {command} needs reallm-devkit; pip install reallm-devkit\n"
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_no_devkit")
@pytest.mark.parametrize("arguments", [[], ["plugins"], ["plugins", "check"], ["plugins", "new"]])
def test_help_works_and_shows_the_commands(arguments, capsys):
    assert run([*arguments, "--help"]) == 0
    out = capsys.readouterr().out
    assert "plugins" in out
    if arguments == ["plugins"]:
        assert "check" in out
        assert "new" in out


@pytest.mark.usefixtures("_no_devkit")
def test_the_old_name_of_the_kit_says_what_to_install():
    import reallm.testing

    with pytest.raises(ImportError, match=r"^reallm\.testing needs reallm-devkit; pip install reallm-devkit$"):
        from reallm.testing import DatasetKit  # noqa: F401
    with pytest.raises(ReallmError):
        _ = reallm.testing.check_family


def test_a_dependency_of_the_devkit_that_is_missing_is_told_as_it_is(monkeypatch, tmp_path):
    (tmp_path / "reallm_devkit.py").write_text("import a_module_that_nobody_has\n", encoding="utf-8")
    forget_devkit(monkeypatch)
    monkeypatch.setattr(sys, "meta_path", [PathFinder])
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        import_devkit("reallm_devkit", "this test")


def test_no_module_of_the_core_imports_it():
    code = (
        f"{HIDE}import importlib, pkgutil, reallm\n"
        "for module in pkgutil.walk_packages(reallm.__path__, 'reallm.'):\n"
        "    if not module.name.endswith(('__main__', '.trackio', '.wandb')):\n"
        "        importlib.import_module(module.name)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
