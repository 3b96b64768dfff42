"""`docs/plugins.md` is true: every hook is there with its signature, and the plugin it shows is the tested one."""

from __future__ import annotations

import inspect

import pytest

from reallm import hookspecs
from reallm.plugins.kinds import KINDS
from workspace import ROOT

PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
HOOKS = {name: value for name, value in vars(hookspecs).items() if hasattr(value, "reallm_spec")}
TUTORIAL = ROOT / "tests" / "plugins" / "reallm-my-data"


def test_there_are_hooks():
    assert "reallm_datasets" in HOOKS


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_is_documented_with_its_signature_and_an_example(name):
    signature = str(inspect.signature(HOOKS[name])).replace("'", "")
    _, heading, section = PAGE.partition(f"\n### {name}\n")
    assert heading
    section = section.partition("\n##")[0]
    assert f"```\n{name}{signature}\n```" in section
    assert f"@hookimpl\ndef {name}():" in section


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_says_what_it_is_for_and_how_in_its_docstring(name):
    text = inspect.getdoc(HOOKS[name])
    assert text is not None
    assert "`" in text


def test_every_hook_belongs_to_one_kind_of_offer():
    assert sorted(kind.hook for kind in KINDS.values()) == sorted(HOOKS)


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_the_table_of_hooks_names_the_form_of_entry_points(kind):
    assert f"| [`{kind.hook}`](#{kind.hook}) |" in PAGE
    assert f"`{kind.name}.<name>`" in PAGE


def test_the_page_states_the_version_of_the_hook_api():
    assert "it is now {}.{}".format(*hookspecs.HOOK_API) in PAGE


@pytest.mark.parametrize(
    "name", ["pyproject.toml", *(f"src/reallm_my_data/{x}.py" for x in ("plugin", "config", "dataset"))]
)
def test_the_files_of_the_tutorial_are_those_that_are_tested(name):
    language = "toml" if name.endswith(".toml") else "python"
    text = (TUTORIAL / name).read_text(encoding="utf-8")
    assert f"`{name}` " in PAGE
    assert f"```{language}\n{text}```" in PAGE
