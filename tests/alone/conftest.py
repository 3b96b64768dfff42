"""Tests of what a part of the packages does without the others: each file here belongs to the tox environment of
the same name (`test_core_llama.py`: `tox run -e core-llama`), which installs exactly that part."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distributions
from pathlib import Path

import pytest

PARTS = {
    "core": {"reallm-core"},
    "core-datasets": {"reallm-core", "reallm-datasets"},
    "core-llama": {"reallm-core", "reallm-hf-llama"},
    "core-mistral": {"reallm-core", "reallm-hf-mistral"},
}

Reallm = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(autouse=True)
def _only_its_part_is_installed(request: pytest.FixtureRequest) -> None:
    environment = request.path.stem.removeprefix("test_").replace("_", "-")
    installed = {one.name for one in distributions() if one.name.startswith("reallm-")}
    if installed != PARTS[environment]:
        message = f"run it by `tox run -e {environment}`; installed here: {', '.join(sorted(installed))}"
        if os.environ.get("TOX_ENV_NAME") == environment:
            pytest.fail(message)
        pytest.skip(message)


@pytest.fixture
def reallm(tmp_path: Path) -> Reallm:
    """Runs the installed command in an empty folder: `reallm("plugins", "--json")`."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("reallm")), *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)

    return run
