"""The folder from which torch loads compiled code is this user's own."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from reallm.compiled_code import check_own_folder, use_own_folder
from reallm.errors import ConfigError

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


@pytest.fixture
def usual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that torch would take."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOGNAME", "alice")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "")  # so that it is put back
    monkeypatch.delenv(VARIABLE)
    return tmp_path / "torchinductor_alice"


def test_it_is_the_folder_that_torch_takes(usual: Path) -> None:
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    assert default_cache_dir() == str(usual)


def test_a_folder_of_ones_own_is_used_and_made(usual: Path) -> None:
    for _ in range(2):
        use_own_folder()
        assert VARIABLE not in os.environ
        check_own_folder()
        assert usual.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_somebody_else_has_made_is_not_used(usual: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "folder":
        usual.mkdir()
        other = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: other)
    elif kind == "file":
        usual.touch()
    else:
        usual.symlink_to("nowhere")
    use_own_folder()
    assert os.environ[VARIABLE] == str(usual.parent / "cache" / "reallm" / "compiled")
    with pytest.raises(ConfigError, match=r"torch would compile code from .*alice, which is not yours; have it"):
        check_own_folder()


def test_what_the_user_has_set_stays(usual: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual.touch()
    monkeypatch.setenv(VARIABLE, "mine")
    use_own_folder()
    assert os.environ[VARIABLE] == "mine"
