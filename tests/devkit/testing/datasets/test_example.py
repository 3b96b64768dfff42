"""The example of the documentation keeps its promises, read from its sources."""

from __future__ import annotations

import importlib

import pytest

from reallm_devkit import check_dataset
from tests.devkit.testing.datasets.broken_datasets import Characters
from workspace import ROOT

PLUGINS = ROOT / "tests" / "installable"
SLOW = {"another-process": "it takes seconds; the package's own tests have it"}


def test_the_dataset_of_the_tutorial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PLUGINS / "reallm-my-data" / "src"))
    spec = importlib.import_module("reallm_my_data.plugin").reallm_datasets()["my-dataset"]
    lines = ["a first line", "a second one", "", "and a third", "two words", "and the last"]
    found = check_dataset(spec, config={"my_arg": 1}, rows=lines, tokenizer=Characters(), skip=SLOW)  # type: ignore[arg-type]
    assert found.passed, str(found)
    skipped = {result.check for result in found.results if result.status == "skipped"}
    assert skipped == {"another-process", "report", "bad-row"}
