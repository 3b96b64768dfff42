"""Locks of files: who has one."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import pytest

from reallm.file_locks import holder, release, try_lock


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who has a lock")
def test_who_holds_a_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert holder(ours) == ""
    assert try_lock(theirs)
    assert not try_lock(ours)
    assert holder(ours) == f" (process {os.getpid()})"
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert holder(ours) == f" (process {os.getpid()} of {pwd.getpwuid(user).pw_name})"
    release(theirs)
    release(ours)
