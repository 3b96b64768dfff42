"""What a package imports is what it declares. Read from the sources, since the tests run where all is installed."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workspace import packages, pyproject

USED_WITHOUT_IMPORT = {
    "tensorboard": "torch.utils.tensorboard writes its files",
    "pyarrow": "an extra",
}
SPELT_OTHERWISE = {"reallm": "reallm-core", "yaml": "pyyaml"}
PACKAGES = {package.name: package for package in packages()}
OWN = {name.replace("-", "_") for name in PACKAGES if name != "reallm-core"} | {"reallm"}


def source_files(package: Path) -> list[Path]:
    return sorted((package / "src").rglob("*.py"))


def imported_modules(file: Path) -> Iterator[tuple[str, str]]:
    """Yields (module, name in it or "") for every absolute import of a file, wherever it stands."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: relative import"
            assert node.module is not None
            yield from ((node.module, alias.name) for alias in node.names)


def imported_distributions(package: Path) -> set[str]:
    """Third-party and own top-level modules that a package imports, spelt as distributions are."""
    tops = {module.partition(".")[0] for file in source_files(package) for module, _ in imported_modules(file)}
    own = {path.name for path in (package / "src").iterdir()}
    return {SPELT_OTHERWISE.get(top, top.replace("_", "-")) for top in tops - own - sys.stdlib_module_names}


def declared_distributions(package: Path) -> tuple[set[str], set[str]]:
    """What a package declares: always needed, and needed by an extra."""
    project = pyproject(package)["project"]
    extras = [one for extra in project.get("optional-dependencies", {}).values() for one in extra]
    return {_name(one) for one in project["dependencies"]}, {_name(one) for one in extras}


def _name(requirement: str) -> str:
    found = re.match(r"[\w.-]+", requirement)
    assert found, requirement
    return found.group()


@pytest.mark.parametrize("name", PACKAGES)
def test_every_import_is_declared(name: str) -> None:
    needed, extra = declared_distributions(PACKAGES[name])
    assert imported_distributions(PACKAGES[name]) - needed - extra == set()


@pytest.mark.parametrize("name", PACKAGES)
def test_every_declared_dependency_is_used(name: str) -> None:
    needed, extra = declared_distributions(PACKAGES[name])
    assert (needed | extra) - imported_distributions(PACKAGES[name]) - set(USED_WITHOUT_IMPORT) == set()


@pytest.mark.parametrize("name", sorted(set(PACKAGES) - {"reallm-core"}))
def test_a_plugin_imports_public_names_of_the_core_and_no_other_plugin(name: str) -> None:
    package = PACKAGES[name]
    own = name.replace("-", "_")
    for file in source_files(package):
        for module, imported in imported_modules(file):
            top = module.partition(".")[0]
            assert top == own or top not in OWN - {"reallm"}, f"{file} imports {module}"
            if top == "reallm":
                private = [part for part in f"{module}.{imported}".split(".") if part.startswith("_")]
                assert not private, f"{file} imports {module}.{imported}, which is private"


@pytest.mark.parametrize("name", PACKAGES)
def test_no_package_depends_on_another_familys(name: str) -> None:
    needed, extra = declared_distributions(PACKAGES[name])
    assert (needed | extra) & set(PACKAGES) == (set() if name == "reallm-core" else {"reallm-core"})
