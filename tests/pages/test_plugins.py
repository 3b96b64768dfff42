"""The pages for plugin authors are true: all hooks, names and checks are there, the examples are the tested ones."""

from __future__ import annotations

import dataclasses
import inspect

import pytest

import reallm
import reallm_devkit as testing
from reallm import hookspecs, specs
from reallm.algorithms import interface
from reallm.algorithms.context import CallContext
from reallm.algorithms.interface_checks import ARGUMENTS
from reallm.plugins.kinds import KINDS
from reallm_devkit.testing.kits import KITS, kit_class
from workspace import ROOT

DOCS = ROOT / "docs"
PAGE = (DOCS / "plugins.md").read_text(encoding="utf-8")
REFERENCE = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md")))
HOOKS = {name: value for name, value in vars(hookspecs).items() if hasattr(value, "reallm_spec")}
EXAMPLES = {
    "write-a-family.md": "reallm-hf-hyperclovax",
    "write-a-dataset.md": "reallm-my-data",
    "write-an-algorithm.md": "reallm-raft",
    "write-a-logger.md": "reallm-csv",
    "write-a-callback.md": "reallm-plateau",
}
"""Page -> the package in `tests/installable` that it shows."""


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


ALGORITHMS = PAGE.partition("\n### reallm_algorithms\n")[2].partition("\n### ")[0]


@pytest.mark.parametrize("spec", [specs.Algorithm, specs.ModelFunctionCall, specs.WeightUpdate, specs.DatasetSpec])
def test_specs_are_documented_with_their_fields_and_defaults(spec):
    fields = [
        item.name if item.default is dataclasses.MISSING else f"{item.name}={item.default!r}".replace("'", '"')
        for item in dataclasses.fields(spec)
    ]
    assert f"`{spec.__name__}({', '.join(fields)})`" in PAGE


def test_all_fields_of_an_algorithm_and_of_its_calls_are_explained():
    for name in ("config", "graph", "interfaces"):
        assert f"\n- `{name}`, " in ALGORITHMS
    for item in dataclasses.fields(specs.ModelFunctionCall):
        assert f"\n| `{item.name}` | " in ALGORITHMS


@pytest.mark.parametrize("method", ARGUMENTS)
def test_methods_of_interfaces_are_documented_with_the_arguments_that_are_checked(method):
    protocols = {
        "generate": interface.GenerateInterface,
        "inference": interface.InferenceInterface,
        "train_step": interface.TrainInterface,
        "reward": interface.RewardInterface,
        "eval_metrics": interface.EvalMetrics,
    }
    parameters = list(inspect.signature(getattr(protocols[method], method)).parameters)
    assert parameters == ["self", *ARGUMENTS[method]]
    assert f"\n| `{method}({', '.join(ARGUMENTS[method])})` | " in ALGORITHMS


def test_everything_of_a_context_is_named():
    of_the_run = {"for_call", "after_updates"}  # what a run makes of a context, and no interface needs
    public = [name for name in vars(CallContext) if not name.startswith("_") and name not in of_the_run]
    for name in {*public, *(item.name for item in dataclasses.fields(CallContext))}:
        assert f"`{name}" in ALGORITHMS


@pytest.mark.parametrize("page", EXAMPLES)
def test_a_page_includes_all_files_of_its_example_as_they_are(page):
    text = (DOCS / page).read_text(encoding="utf-8")
    folder = ROOT / "tests" / "installable" / EXAMPLES[page]
    files = [path for path in [*folder.glob("*.toml"), *folder.rglob("*.py")] if path.name != "__init__.py"]
    assert len(files) >= 3
    for path in files:
        language = "toml" if path.suffix == ".toml" else "python"
        assert f"`{path.relative_to(folder)}` " in text
        assert f'```{language}\n--8<-- "{path.relative_to(ROOT)}"\n```' in text


@pytest.mark.parametrize("module", [reallm, testing], ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_reference(module):
    lines = REFERENCE.splitlines()
    assert [name for name in module.__all__ if f"::: {module.__name__}.{name}" not in lines] == []


@pytest.mark.parametrize("kind", KITS)
def test_every_check_of_a_kit_is_in_the_reference_with_its_promise(kind):
    lines = REFERENCE.splitlines()
    rows = [f"| `{check.name}` | {check.promise} |" for check in kit_class(kind).checks]
    assert [row for row in rows if row not in lines] == []
