"""What another user has made is told from what is this user's own; the other user is this one before the test."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from reallm.other_users import planted_by, user_name

NAME = pwd.getpwuid(os.geteuid()).pw_name


@pytest.mark.parametrize(("mode", "user"), [(0o1777, NAME), (0o777, NAME), (0o775, None), (0o755, None)])
def test_another_user_plants_where_everyone_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, user: str | None
) -> None:
    planted = tmp_path / "everyones" / "run"
    planted.mkdir(parents=True)
    planted.parent.chmod(mode)
    assert planted_by(planted) is None, "our own"
    assert planted_by(planted.parent / "nothing") is None
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert planted_by(planted) == user


def test_a_user_without_a_name() -> None:
    unknown = 3_999_999_999
    assert user_name(unknown) == f"user {unknown}"
    assert user_name(os.geteuid()) == NAME
