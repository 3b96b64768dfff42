"""The boundary to files of others: whatever they hold, the error is one line with the file and the remedy."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import reallm
from reallm.errors import CheckpointError, ConfigError, DataError
from reallm.foreign_files import check_own, is_finite_number, read_json_object, reading


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


class TestLinks:
    @pytest.fixture
    def secret(self, tmp_path: Path) -> Path:
        file = tmp_path / "secret"
        file.write_text('{"key": "k"}')
        return file

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        made = tmp_path / "model"
        made.mkdir()
        return made

    def test_out_of_the_folder_is_not_followed(self, folder: Path, secret: Path) -> None:
        file = folder / "config.json"
        for target in (secret, Path("..", "secret"), Path("nowhere", "..", "..", "secret"), Path("/dev/null")):
            file.symlink_to(target)
            with pytest.raises(
                CheckpointError, match=r"config\.json is a link that leads out of its folder, to .*; put"
            ):
                read_json_object(file)
            file.unlink()

    def test_by_a_folder_within_is_not_followed(self, folder: Path, secret: Path) -> None:
        (folder / "chat_templates").symlink_to(secret.parent)
        with pytest.raises(CheckpointError, match="leads out of its folder"):
            check_own(folder / "chat_templates" / "secret", folder)

    def test_within_the_folder_is_followed(self, folder: Path, secret: Path) -> None:
        secret.rename(folder / "other.json")
        (folder / "config.json").symlink_to("other.json")
        assert read_json_object(folder / "config.json") == {"key": "k"}

    def test_to_the_folder_itself_is_followed(self, folder: Path, secret: Path, tmp_path: Path) -> None:
        secret.rename(folder / "config.json")
        (tmp_path / "last").symlink_to("model")
        assert read_json_object(tmp_path / "last" / "config.json") == {"key": "k"}

    def test_to_the_blobs_of_a_model_in_the_hubs_cache_is_followed(self, secret: Path, tmp_path: Path) -> None:
        model = tmp_path / "models--org--name"
        for folder in (model / "blobs", model / "snapshots" / "1a2b"):
            folder.mkdir(parents=True)
        file = model / "snapshots" / "1a2b" / "config.json"
        file.symlink_to(Path("..", "..", "blobs", "c3d4"))
        secret.rename(model / "blobs" / "c3d4")
        assert read_json_object(file) == {"key": "k"}
        (model / "blobs" / "c3d4").rename(model / "c3d4")
        (model / "blobs" / "c3d4").symlink_to(Path("..", "c3d4"))
        with pytest.raises(CheckpointError, match="leads out of its folder"):
            read_json_object(file)


def test_what_is_in_order_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"a": [1, {"b": "é"}], "c": 10**30}))
    assert read_json_object(tmp_path / "config.json") == {"a": [1, {"b": "é"}], "c": 10**30}


@pytest.mark.parametrize("value", [10**30, -(2**63), float("nan"), float("inf"), True, "1", None, [1]])
def test_numbers_that_cannot_be_computed_with(value: object) -> None:
    assert not is_finite_number(value)


ERRORS_OF_PARSERS = {
    "ArrowException", "ArrowInvalid", "BadGzipFile", "JSONDecodeError", "MarkedYAMLError", "NOT_JSON", "RecursionError",
    "SafetensorError", "TemplateSyntaxError", "UnicodeDecodeError", "YAMLError",
}  # fmt: skip
WITH_MESSAGES_OF_THEIR_OWN = {
    "config/assignments.py": "the line of YAML; text of the command line that is no YAML is text",
    "data/chat/known_templates.py": "the line of a template",
    "data/messages.py": "the key of a row",
    "data/readers/json_rows.py": "line, column and hint of JSON",
    "data/readers/text_lines.py": "line, column and byte",
    "foreign_files.py": "the boundary",
    "launch/store.py": "another process is to blame, not a file",
    "serving/bodies.py": "an error of the API, with the place",
    "serving/token_texts.py": "bytes of a token that are no text are shown",
}


def caught(tree: ast.AST) -> Iterator[str]:
    """The names in `except` and `suppress`."""
    for node in ast.walk(tree):
        is_suppress = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress")
        kinds = [node.type] if isinstance(node, ast.ExceptHandler) else node.args if is_suppress else []
        for kind in kinds:
            yield from (part.rpartition(".")[2] for part in ast.unparse(kind).strip("()").split(", ")) if kind else ()


def test_what_parsers_raise_is_caught_at_the_boundary() -> None:
    """Elsewhere only where the message says more: each such module is listed with what that is."""
    core = Path(reallm.__file__).parent
    found = {
        file.relative_to(core).as_posix()
        for file in core.rglob("*.py")
        if ERRORS_OF_PARSERS & {*caught(ast.parse(file.read_text(encoding="utf-8")))}
    }
    assert found == WITH_MESSAGES_OF_THEIR_OWN.keys()
