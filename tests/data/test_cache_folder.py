"""Folders of caches: who can write them decides what is trained on, and who can read them has the data."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reallm.data.cache_folder import named_cache, user_cache
from reallm.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def test_the_users_cache_is_for_this_user_alone(home: Path) -> None:
    assert user_cache("tokenized") == home / "reallm" / "tokenized"
    assert mode_of(home / "reallm") == 0o700


def test_a_cache_that_others_can_read_is_closed(home: Path) -> None:
    (home / "reallm").mkdir()
    (home / "reallm").chmod(0o755)
    assert user_cache("tokenized") is not None
    assert mode_of(home / "reallm") == 0o700


def test_a_cache_that_others_may_have_filled_is_not_used(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "reallm").mkdir()
    (home / "reallm").chmod(0o777)
    assert user_cache("tokenized") is None
    (home / "reallm").chmod(0o700)
    assert user_cache("tokenized") is not None
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert user_cache("tokenized") is None


def test_a_cache_that_cannot_be_made_is_none(home: Path) -> None:
    (home / "reallm").touch()
    assert user_cache("tokenized") is None


def test_a_named_cache_where_everyone_can_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    with pytest.raises(ConfigError, match=r"^dataset\.cache_dir: every user .* such as .*/mine, or chmod o-w "):
        named_cache("dataset.cache_dir", tmp_path)


def test_a_named_cache_is_made_for_more_than_one_user_but_not_for_everyone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        assert mode_of(named_cache("dataset.cache_dir", tmp_path / "cache")) == 0o775
    finally:
        os.umask(before)
