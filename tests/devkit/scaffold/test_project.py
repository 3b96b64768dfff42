"""`reallm plugins new`: which files it writes under which names, and what it refuses in one line."""

from __future__ import annotations

import ast
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from reallm.cli.main import run
from reallm.errors import ConfigError
from reallm.hookspecs import HOOK_API
from reallm.plugins import registry
from reallm_devkit.scaffold.architecture import architecture_of
from reallm_devkit.scaffold.family import draft_tables
from reallm_devkit.scaffold.project import TEMPLATES, plan_project
from reallm_devkit.scaffold.writing import render, write_files
from workspace import ROOT

NAMES = {
    "dataset": "my-data",
    "family": "my-model",
    "algorithm": "raft",
    "logger": "csv",
    "callback": "plateau",
    "reward": "ending",
}
PACKAGES = {
    "dataset": "reallm_my_data",
    "family": "reallm_hf_my_model",
    "algorithm": "reallm_raft",
    "logger": "reallm_csv",
    "callback": "reallm_plateau",
    "reward": "reallm_ending",
}
MODULES = {
    "dataset": ["config.py", "dataset.py"],
    "family": [],
    "algorithm": ["config.py", "interface.py", "rewards.py"],
    "logger": ["logger.py"],
    "callback": ["callback.py"],
    "reward": ["reward.py"],
}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "declared", lambda kind: ["taken"])  # whatever is installed here


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def error(capsys, *arguments: str) -> str:
    """The one line that a wrong call ends in, which leaves nothing behind."""
    before = tree(Path())
    assert run(["plugins", "new", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert tree(Path()) == before
    (line,) = printed.err.splitlines()
    return line


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_package_has_its_files_and_the_command_lists_them_and_what_to_do_next(kind, capsys):
    assert run(["plugins", "new", kind, NAMES[kind]]) == 0
    folder = Path(PACKAGES[kind].replace("_", "-"))
    files = tree(folder)
    source = f"src/{PACKAGES[kind]}"
    assert {"pyproject.toml", "README.md", "tests/test_conformance.py"} < set(files)
    assert [name for name in files if name.startswith("src/")] == sorted(
        f"{source}/{name}" for name in ("__init__.py", "plugin.py", "py.typed", *MODULES[kind])
    )
    out = capsys.readouterr().out
    for line in (*files, f"cd {folder}", 'pip install -e ".[test]"', "pytest"):
        assert line in out
    offered = NAMES[kind].replace("-", "_") if kind == "family" else NAMES[kind]
    assert f"  reallm plugins check {offered}" in out


@pytest.mark.parametrize("kind", TEMPLATES)
def test_its_entry_point_promises_what_its_hook_returns(kind):
    assert run(["plugins", "new", kind, NAMES[kind]]) == 0
    folder = Path(PACKAGES[kind].replace("_", "-"))
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ((entry, module),) = project["entry-points"]["reallm"].items()
    name = entry.removeprefix(f"{kind}.")
    assert module == f"{PACKAGES[kind]}.plugin"
    source = (folder / "src" / PACKAGES[kind] / "plugin.py").read_text(encoding="utf-8")
    assert f'"{name}"' in source
    assert 'REALLM_HOOK_API = "{}.{}"'.format(*HOOK_API) in source


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("name", ["x", "csv2.5", "a-rather-long-name-of-several-words"])
def test_whatever_the_name_nothing_is_left_to_fill_in_and_python_reads_it(kind, name):
    project = plan_project(kind, name, core="0.1", hook_api="1.1")
    if kind == "family":
        architecture = architecture_of("llama")
        project = replace(project, architecture=architecture, draft=draft_tables(architecture))
    for path, text in render(project).items():
        assert "{{" not in text, path
        assert "package" not in Path(path).parts
        assert text.endswith("\n") or not text
        if path.endswith(".py"):
            ast.parse(text)
        if path.endswith(".toml"):
            tomllib.loads(text)


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        ("dataset", "my-data", ("my-data", "reallm-my-data", "reallm_my_data", "MyDataDataset")),
        ("dataset", "my-dataset", ("my-dataset", "reallm-my-dataset", "reallm_my_dataset", "MyDataset")),
        ("logger", "csv", ("csv", "reallm-csv", "reallm_csv", "CsvLogger")),
        ("family", "my-model", ("my_model", "reallm-hf-my-model", "reallm_hf_my_model", "MyModelFamily")),
        ("family", "qwen2.5", ("qwen2_5", "reallm-hf-qwen2-5", "reallm_hf_qwen2_5", "Qwen25Family")),
    ],
)
def test_names_follow_from_the_one_that_is_given(kind, name, expected):
    project = plan_project(kind, name, core="0.1", hook_api="1.1")
    assert (project.name, project.distribution, project.package, project.class_name) == expected


def test_the_default_model_type_is_llama(capsys):
    assert run(["plugins", "new", "family", "my-model"]) == 0
    assert "Every key and tensor of llama has a place; the checks say whether it is the right one." in " ".join(
        capsys.readouterr().out.split()
    )
    source = Path("reallm-hf-my-model/src/reallm_hf_my_model/plugin.py").read_text(encoding="utf-8")
    assert 'model_type="llama"' in source


def test_it_is_written_where_the_user_says():
    assert run(["plugins", "new", "logger", "csv", "--dir", "some/where"]) == 0
    assert tree(Path("some/where/reallm-csv"))


def test_an_empty_folder_is_filled():
    Path("reallm-csv").mkdir()
    assert run(["plugins", "new", "logger", "csv"]) == 0
    assert tree(Path("reallm-csv"))


def test_a_folder_with_something_in_it_is_left_alone(capsys):
    Path("reallm-csv").mkdir()
    Path("reallm-csv/mine.txt").touch()
    assert "reallm-csv exists and is not empty; remove it" in error(capsys, "logger", "csv")


def test_a_file_in_its_place_is_left_alone(capsys):
    Path("reallm-csv").touch()
    assert "reallm-csv: it is a file, not a folder" in error(capsys, "logger", "csv")


def test_a_failure_half_way_leaves_nothing():
    with pytest.raises(TypeError):
        write_files({"a": "text", "b": None}, Path("package"))
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["datset", "x"], "there is no kind of plugin 'datset'; did you mean 'dataset'?"),
        (["widget", "x"], "there is no kind of plugin 'widget'; there are dataset, family, algorithm, logger"),
        (["dataset", "My Data"], "begin with a letter, use a-z, 0-9 and dashes, such as 'my-data'"),
        (["dataset", "3"], "'3' cannot name a package; begin with a letter, use a-z, 0-9 and dashes"),
        (["dataset", "../x"], "'../x' cannot name a package"),
        (["dataset", "größe"], "'größe' cannot name a package"),
        (["dataset", "a--b"], "such as 'a-b'"),
        (["dataset", "reallm-my-data"], "leave 'reallm-' out, which the package gets anyway: new dataset my-data"),
        (["family", "reallm_hf_x"], "leave 'reallm-hf-' out, which the package gets anyway: new family x"),
        (["logger", "taken"], "the logger 'taken' is installed already; choose another name"),
        (["family", "mistral"], "the family 'mistral' is in reallm-hf-mistral; install that, or choose another name"),
        (["family", "x", "--model-type", "lama"], "transformers does not know this model type; did you mean 'llama'?"),
        (["family", "x", "--model-type", "t5"], "t5: it is an encoder-decoder, and reallm has only causal decoders"),
        (["family", "x", "--model-type", "bert"], "bert: it is bidirectional, and reallm has only causal decoders"),
        (["family", "x", "--model-type", "xlnet"], "xlnet: in XLNetLMHeadModel tokens see later ones, and reallm has"),
        (["logger", "x", "--model-type", "llama"], "--model-type is for families, not for a logger"),
        (["dataset"], "missing argument 'NAME'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_with_the_remedy(arguments, message, capsys):
    assert message in error(capsys, *arguments)


def test_an_unwritable_place_is_one_line(capsys):
    Path("file").touch()
    assert "cannot write" in error(capsys, "logger", "csv", "--dir", "file/sub")


@pytest.mark.parametrize(("kind", "name"), [("dataset", "1x"), ("what", "x")])
def test_in_python_it_is_an_error_of_ours(kind, name):
    with pytest.raises(ConfigError):
        plan_project(kind, name, core="0.1", hook_api="1.1")


@pytest.mark.parametrize(("kind", "name"), [("logger", "csv"), ("callback", "plateau"), ("algorithm", "raft")])
def test_the_example_of_the_documentation_is_what_the_command_writes(kind, name):
    project = plan_project(kind, name, core="0.1", hook_api="{}.{}".format(*HOOK_API))
    example = ROOT / "tests" / "installable" / f"reallm-{name}"
    assert [path for path in tree(example) if not re.search("__pycache__|egg-info|build/", path)] == list(
        render(project)
    )
    for path, text in render(project).items():
        assert (example / path).read_text(encoding="utf-8") == text
