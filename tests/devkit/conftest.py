"""The third-party family Apertus, with layers of its own, can be imported here without being installed.

What passes is recorded in a folder of the test run.
"""

from __future__ import annotations

import sys

import pytest

from reallm.plugins import checked
from workspace import ROOT

sys.path.append(str(ROOT / "tests" / "installable" / "reallm-hf-apertus" / "src"))


@pytest.fixture(autouse=True)
def _records_of_the_run(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path_factory.getbasetemp()
    monkeypatch.setattr(checked, "_cache", lambda: folder)
