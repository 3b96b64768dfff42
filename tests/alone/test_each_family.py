"""`test_core_family.py` with each package of families: in a process that has this one on its path, as installed alone.

The processes are forked from one that has imported torch, transformers and the conformance kit.
"""

from __future__ import annotations

import os
import sys
import zipfile
from pathlib import Path

import pytest

from build_dists import build_all
from tests.helpers.forked import ForkedPython
from tests.helpers.ranks import PRELOADED
from workspace import ROOT, family_packages

KIT = ["transformers.models.auto.modeling_auto", "reallm_devkit.testing.families.kit", "pytest"]


@pytest.fixture(scope="session")
def wheels() -> Path:
    """The folder with the wheels of all packages, as tox has built them."""
    return build_all(Path(os.environ["TOX_WORK_DIR"]), Path(sys.executable))


@pytest.mark.parametrize("distribution", family_packages())
def test_with_the_core_and_the_devkit_alone(wheels: Path, tmp_path: Path, distribution: str) -> None:
    (wheel,) = wheels.glob(f"{distribution.replace('-', '_')}-*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    is_forked = "ignore::pytest.PytestAssertRewriteWarning"  # of plugins of pytest that are imported already
    tests = ["-m", "pytest", "-p", "no:cacheprovider", "-W", is_forked, "tests/alone/test_core_family.py"]
    variables, out, err = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}, tmp_path / "out", tmp_path / "err"
    code = ForkedPython(tests, variables, out, err, ROOT, preloaded=[*PRELOADED, *KIT]).wait(900)
    assert code == 0, f"{out.read_text()}\n{err.read_text()}"
    assert " passed" in out.read_text()
