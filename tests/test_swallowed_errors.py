"""Errors of looking at files that `os.path` swallows."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from reallm.swallowed_errors import raising_swallowed


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a disk does not give."""
    path, real = tmp_path / "folder" / "broken", os.stat

    def failing(asked: Any, *more: Any, **options: Any) -> os.stat_result:
        if str(asked) == str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO), asked)
        return real(asked, *more, **options)

    path.parent.mkdir()
    path.touch()
    monkeypatch.setattr(os, "stat", failing)
    return path


def ask(function: str, path: Path | str) -> bool:
    """What a function of `os.path` says."""
    found: bool = getattr(os.path, function)(path)
    return found


@pytest.mark.parametrize("function", ["exists", "isdir", "isfile"])
def test_an_error_of_the_disk_is_raised_once_the_block_has_ended(broken: Path, function: str) -> None:
    answers: list[bool] = []
    with pytest.raises(OSError, match="Input/output error.*broken"), raising_swallowed(broken.parent):
        answers.append(ask(function, broken))
    assert answers == [False]


def test_it_takes_the_place_of_what_follows_from_it(broken: Path) -> None:
    def read() -> None:
        if not ask("isfile", broken):
            raise ValueError("there is no such file")

    with pytest.raises(OSError, match="Input/output error") as caught, raising_swallowed(broken.parent):
        read()
    assert isinstance(caught.value.__cause__, ValueError)


def test_other_errors_and_answers_are_as_they_were(broken: Path) -> None:
    folder, before = broken.parent, os.path.isfile
    with raising_swallowed(folder):
        assert ask("isdir", folder)
        assert not ask("isfile", folder)
        assert not ask("exists", folder / "none")
        assert not ask("isfile", Path(__file__, "in a file"))
        assert not ask("isfile", "zero\0")
        assert ask("isfile", __file__)
    with raising_swallowed(folder / "other"):
        assert not ask("isfile", broken)  # not in that folder
    with pytest.raises(ValueError, match="of the block"), raising_swallowed(folder):
        raise ValueError("of the block")
    assert os.path.isfile is before
