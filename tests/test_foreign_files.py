"""The boundary to files of others: whatever they hold, the error is one line with the file and the remedy."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from reallm.errors import CheckpointError, ConfigError, DataError
from reallm.foreign_files import is_finite_number, read_json_object, reading


@pytest.mark.parametrize("raised", [Exception("bare\n\x1b[31m"), RecursionError(), KeyError("a"), AssertionError()])
def test_any_exception_is_one_line_with_file_and_remedy(raised: Exception) -> None:
    with pytest.raises(DataError, match=r"^file\.json cannot be read \(.+\); copy it again$") as found:  # noqa: SIM117
        with reading("file.json", "copy it again", error=DataError):
            raise raised
    assert str(found.value).isprintable()


def test_a_panic_of_rust_is_an_error_too() -> None:
    class PanicException(BaseException): ...

    with pytest.raises(CheckpointError, match="cannot be read"), reading("file.json"):
        raise PanicException("index out of bounds")


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), MemoryError(), SystemExit(), ConfigError("said already")])
def test_these_pass(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as found, reading("file.json"):
        raise raised
    assert found.value is raised


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff", "cannot be read as JSON .*utf-8"),
        (b"[]", "must hold a JSON object, not list"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 500 + b"]" * 500 + b"}", "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        (b" " * 200, "larger than 0 MiB"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_json_is_read_within_bounds(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as found:
        read_json_object(file, at_most=100 if content.isspace() else 1 << 20)
    assert str(found.value).startswith(str(file))
    assert "\n" not in str(found.value)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        read_json_object(tmp_path / "config.json")


def test_what_is_in_order_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"a": [1, {"b": "é"}], "c": 10**30}))
    assert read_json_object(tmp_path / "config.json") == {"a": [1, {"b": "é"}], "c": 10**30}


@pytest.mark.parametrize("value", [10**30, -(2**63), float("nan"), float("inf"), True, "1", None, [1]])
def test_numbers_that_cannot_be_computed_with(value: object) -> None:
    assert not is_finite_number(value)
