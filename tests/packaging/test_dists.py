"""Wheels and sdists hold what they should: no more, no less, from either way of building them."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

from build_dists import build, build_all
from workspace import ROOT, packages, pyproject, sources

PACKAGES = {package.name: package for package in packages()}
VERSION = (ROOT / "VERSION").read_text(encoding="utf-8").strip()
each_package = pytest.mark.parametrize("name", PACKAGES)


class Built:
    """One package's sdist, the wheel built from that sdist, and a wheel built from the folder directly."""

    def __init__(self, name: str, dists: Path, direct: Path) -> None:
        self.stem = f"{name.replace('-', '_')}-{VERSION}"
        self.sdist = dists / f"{self.stem}.tar.gz"
        self.wheel = read_wheel(dists / f"{self.stem}-py3-none-any.whl")
        self.direct_wheel = read_wheel(direct / f"{self.stem}-py3-none-any.whl")

    def info(self, file: str) -> str:
        """The text of a file in the wheel's `.dist-info`."""
        return self.wheel[f"{self.stem}.dist-info/{file}"].decode()

    def metadata(self) -> Message:
        return Parser().parsestr(self.info("METADATA"))


def read_wheel(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Built]:
    work_dir = os.environ.get("TOX_WORK_DIR")  # where they are built already, for the environments
    dists = build_all(Path(work_dir) if work_dir else tmp_path_factory.mktemp("work"), Path(sys.executable))
    direct = tmp_path_factory.mktemp("direct")
    build(packages(), direct, Path(sys.executable), only_wheels=True)
    return {name: Built(name, dists, direct) for name in PACKAGES}


@each_package
def test_the_wheel_holds_every_source_file_and_nothing_else(built: dict[str, Built], name: str) -> None:
    source = PACKAGES[name] / "src"
    wanted = {
        path.relative_to(source).as_posix(): path.read_bytes()
        for path in sources(PACKAGES[name])
        if path.is_relative_to(source)
    }
    held = {file: data for file, data in built[name].wheel.items() if ".dist-info/" not in file}
    assert held.keys() == wanted.keys()
    assert held == wanted
    assert f"{_import_name(name)}/py.typed" in held


@each_package
def test_the_metadata_says_version_licence_and_python(built: dict[str, Built], name: str) -> None:
    metadata = built[name].metadata()
    assert metadata["Name"] == name
    assert metadata["Version"] == VERSION
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert built[name].info("licenses/LICENSE") == (ROOT / "LICENSE").read_text(encoding="utf-8")


@each_package
def test_the_readme_is_shown_on_the_package_index(built: dict[str, Built], name: str) -> None:
    metadata = built[name].metadata()
    assert metadata["Description-Content-Type"] == "text/markdown"
    text = str(metadata.get_payload())
    assert text.strip() == (PACKAGES[name] / "README.md").read_text(encoding="utf-8").strip()
    assert f"pip install {name}" in text or f"pip install reallm-core {name}" in text


@each_package
def test_entry_points_are_those_of_the_project_file_in_one_group(built: dict[str, Built], name: str) -> None:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    project = pyproject(PACKAGES[name])["project"]
    groups = dict(project.get("entry-points", {}))
    if "scripts" in project:
        groups["console_scripts"] = project["scripts"]
    if groups:
        parser.read_string(built[name].info("entry_points.txt"))
    else:
        assert not [file for file in built[name].wheel if file.endswith("/entry_points.txt")]
    assert {group: dict(parser[group]) for group in parser.sections()} == groups
    assert ("reallm" in groups) == (name != "reallm-devkit"), "all but the devkit are plugins"
    assert set(groups) <= {"reallm", "console_scripts"}


@each_package
def test_the_sdist_is_one_folder_of_plain_files(built: dict[str, Built], name: str) -> None:
    with tarfile.open(built[name].sdist) as archive:
        members = archive.getmembers()
    assert all(member.isfile() or member.isdir() for member in members), "a link would break outside the repository"
    assert {member.name.partition("/")[0] for member in members} == {built[name].stem}
    files = {member.name.partition("/")[2] for member in members if member.isfile()}
    beside = {file for file in files if not file.startswith("src/")}
    assert beside == {"pyproject.toml", "README.md", "LICENSE", "VERSION", "PKG-INFO", "setup.cfg"}


@each_package
def test_the_wheel_from_the_sdist_equals_the_wheel_from_the_folder(built: dict[str, Built], name: str) -> None:
    assert built[name].wheel == built[name].direct_wheel


def test_a_package_builds_from_the_repository_with_its_links(tmp_path: Path) -> None:
    """`VERSION` and `LICENSE` are links to one file at the top; what is built holds the files."""
    for file in ("VERSION", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path / file)
    name = "reallm-hf-mistral"
    ignored = shutil.ignore_patterns("*.egg-info", "build")
    folder = shutil.copytree(PACKAGES[name], tmp_path / "packages" / name, symlinks=True, ignore=ignored)
    assert (folder / "VERSION").is_symlink()
    assert (folder / "LICENSE").is_symlink()

    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", str(tmp_path), str(folder)],
        check=True,
        capture_output=True,
    )
    with tarfile.open(tmp_path / f"reallm_hf_mistral-{VERSION}.tar.gz") as archive:
        assert not [member.name for member in archive if member.issym() or member.islnk()]
        version = archive.extractfile(f"reallm_hf_mistral-{VERSION}/VERSION")
        assert version is not None
        assert version.read().decode().strip() == VERSION


def _import_name(name: str) -> str:
    return "reallm" if name == "reallm-core" else name.replace("-", "_")
