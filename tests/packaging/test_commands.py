"""What the README and the contributor's page say is what there is, and no folder of tests is forgotten."""

from __future__ import annotations

import configparser
import itertools
import re
import tomllib

import pytest

from workspace import ROOT, family_packages, packages, pyproject


@pytest.fixture(scope="module")
def tox() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini", encoding="utf-8")
    return parser


def expanded(name: str) -> list[str]:
    """`all-{hf, model}` -> all-hf, all-model."""
    before, brace, rest = name.partition("{")
    inner, _, after = rest.partition("}")
    return [f"{before}{factor.strip()}{after}" for factor in inner.split(",")] if brace else [name]


def environments(tox: configparser.ConfigParser) -> set[str]:
    sections = [section.partition(":")[2] for section in tox.sections() if section.startswith("testenv:")]
    return set(itertools.chain.from_iterable(map(expanded, sections)))


def env_list(tox: configparser.ConfigParser) -> set[str]:
    entries = re.findall(r"(?:[^\s,{]|\{[^}]*\})+", tox["tox"]["env_list"])
    return set(itertools.chain.from_iterable(map(expanded, entries)))


def test_tox_runs_every_environment_but_those_that_take_long_or_need_what_others_do_not_have(tox):
    assert env_list(tox) == environments(tox) - {
        *family_packages(),  # the environment `families` runs their tests
        "demo",
        "demos",
        "faults",
        "gpu",
        "layouts",
        "lm-eval",
        "loggers",
        "peft",
        "reasoning-gym",
        "trl",
        "two-nodes",
        "fuzz",
    }


def test_each_package_of_families_has_an_environment_with_the_core_alone(tox):
    (section,) = [section for section in tox.sections() if section.startswith("testenv:reallm-hf-{")]
    assert expanded(section.partition(":")[2]) == family_packages()
    assert tox[section]["commands_pre"].endswith("reallm-core reallm-devkit {env_name}")


def test_the_layers_are_held_for_every_package():
    layers = configparser.ConfigParser()
    layers.read(ROOT / ".importlinter", encoding="utf-8")
    plugins = [package.name.replace("-", "_") for package in packages() if package.name != "reallm-core"]
    assert layers["importlinter"]["root_packages"].split() == ["reallm", *plugins]
    assert layers["importlinter:contract:core"]["forbidden_modules"].split() == plugins
    assert layers["importlinter:contract:plugins"]["modules"].split() == plugins


def test_every_environment_is_described_to_contributors(tox):
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    described = re.findall(r"`tox run -e ([a-z0-9-]+)`(?=[^\n|]*\|)", page)
    others = {name for name in environments(tox) if not name.startswith("reallm-hf-")}
    assert set(described) == {*others, "reallm-hf-llama"}


def test_ci_runs_the_test_command_of_the_readme():
    command = "python -m pip install tox && python -m tox run-parallel"
    assert f"```sh\n{command}\n```" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1] == command


def pytest_commands(tox: configparser.ConfigParser) -> dict[str, list[str]]:
    """The paths that each pytest command of `tox.ini` runs or ignores, by section and, where it has one, factor."""
    found: dict[str, list[str]] = {}
    for section in tox.sections():
        for line in tox[section].get("commands", "").splitlines():
            factor = re.match(r"(?:(\w+): )?", line).group(1)  # `hf: python -m pytest ...`, continued by `hf: ...`
            name = section if factor is None else f"{section} {factor}"
            found.setdefault(name, []).extend(re.findall(r"(?<![\w/=])(?:--ignore=)?tests/[\w/.]+", line))
    return {name: paths for name, paths in found.items() if paths}


def test_every_test_file_is_run_by_one_environment(tox):
    commands = pytest_commands(tox)
    for file in (ROOT / "tests").rglob("test_*.py"):
        if "installable" in file.parts:
            continue
        running = [
            command
            for command, arguments in commands.items()
            if any(file.is_relative_to(ROOT / path) for path in arguments if not path.startswith("--"))
            and not any(file == ROOT / path.partition("=")[2] for path in arguments if path.startswith("--"))
        ]
        assert len(running) == 1, f"{file.relative_to(ROOT)} is run by {running or 'no environment'} of tox.ini"


BY_KIND = {
    "against_peft", "against_trl", "alone", "demos_in_full", "docs", "earlier_versions", "faults", "fuzz", "gpu",
    "helpers", "installable", "installed_loggers", "layouts", "lm_eval_harness", "packaging", "pages", "pretrained",
    "reasoning_gym_tasks", "third_party", "two_nodes",
}  # fmt: skip
"""Folders of tests that belong to no room of the code."""


def test_folders_of_tests_are_those_of_the_code():
    rooms = {
        "devkit": ROOT / "packages/reallm-devkit/src/reallm_devkit",
        "datasets": ROOT / "packages/reallm-datasets",
        "hf_transformers": ROOT / "packages/reallm-hf-transformers",
        "reward_functions": ROOT / "packages/reallm-rewards",
    }
    core = ROOT / "packages/reallm-core/src/reallm"
    for file in (ROOT / "tests").rglob("test_*.py"):
        first, *inner = file.relative_to(ROOT / "tests").parts[:-1] or ["."]
        if first not in BY_KIND:
            folder = rooms.get(first, core / first).joinpath(*inner)
            assert folder.is_dir(), f"{file.relative_to(ROOT)} tests no folder {folder.relative_to(ROOT)}"


def test_every_path_in_tox_exists(tox):
    for command, arguments in pytest_commands(tox).items():
        for path in arguments:
            assert (ROOT / path.removeprefix("--ignore=")).exists(), f"{command} names {path}"


def test_every_direct_dependency_is_pinned():
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    for package in packages():
        project = pyproject(package)["project"]
        groups = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
        for one in itertools.chain.from_iterable(groups):
            name = re.match(r"[\w.-]+", one).group()
            assert name in pins or name.startswith("reallm-"), f"{package.name} needs {name}: pin it in constraints.txt"


def test_the_version_stands_in_one_file():
    version = (ROOT / "VERSION").read_text(encoding="utf-8").strip()
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    for package in packages():
        assert (package / "VERSION").resolve() == ROOT / "VERSION"
        assert (package / "LICENSE").resolve() == ROOT / "LICENSE"
        assert "version" not in tomllib.loads((package / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_devkit_needs_exactly_the_core_of_its_version():
    version = (ROOT / "VERSION").read_text(encoding="utf-8").strip()
    (devkit,) = [package for package in packages() if package.name == "reallm-devkit"]
    needed = [one for one in pyproject(devkit)["project"]["dependencies"] if one.startswith("reallm-")]
    assert needed == [f"reallm-core=={version}"]


def test_the_changelog_has_an_entry_for_the_version():
    version = (ROOT / "VERSION").read_text(encoding="utf-8").strip()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
