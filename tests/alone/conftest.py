"""Tests of what a part of the packages does without the others: `test_core.py` is for the core alone,
`test_core_datasets.py` for the core, the datasets and the devkit, `test_core_family.py` for the core, the devkit and
any one package of families, as `test_each_family.py` runs it for each. The tox environments `core`, `core-datasets`,
`reallm-hf-llama`, ..., `families` install exactly such a part."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

import pytest

from workspace import family_packages

CORE, DATASETS, DEVKIT = "reallm-core", "reallm-datasets", "reallm-devkit"
PARTS = {
    "test_core": [{CORE}],
    "test_core_datasets": [{CORE, DATASETS, DEVKIT}],
    "test_core_family": [{CORE, DEVKIT, family} for family in family_packages()],
    "test_each_family": [{CORE, DEVKIT}],
}
"""The sets of our distributions that each file may run with."""

Reallm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _only_its_part_is_installed(request: pytest.FixtureRequest) -> None:
    installed = {one.name for one in distributions() if one.name.startswith("reallm-")}
    if installed not in PARTS[request.path.stem]:
        message = f"run it by tox; too much or too little is installed here: {', '.join(sorted(installed))}"
        if "TOX_ENV_NAME" in os.environ:
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture
def reallm(tmp_path: Path) -> Reallm:
    """Runs the installed command in an empty folder: `reallm("plugins", "--json")`."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("reallm")), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)

    return run
