"""Records of checked layers: of this code, on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from reallm.plugins.checked import is_split_checked, record_split_checked

REFERENCE = "kit_layers_package.layers:MLP"


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "kit_layers_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "layers.py").write_text("class MLP: ...\n")
    return folder


def test_a_layer_is_checked_until_its_code_changes(package):
    assert not is_split_checked(REFERENCE)
    record_split_checked(REFERENCE)
    record_split_checked(REFERENCE)
    assert is_split_checked(REFERENCE)
    assert not is_split_checked(REFERENCE.replace("MLP", "Norm"))
    (package / "layers.py").write_text("class MLP: changed = True\n")
    assert not is_split_checked(REFERENCE)


def test_without_a_place_to_write_to_there_is_no_record_and_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    record_split_checked(REFERENCE)
    assert not is_split_checked(REFERENCE)
