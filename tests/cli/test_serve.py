"""Mistakes of `reallm serve` that are found before a model is loaded."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from reallm.cli.main import run
from reallm.cli.serve import _name


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that is printed."""
    assert run(["serve", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    [line] = printed.err.splitlines()
    return line


def test_without_the_extra_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("reallm.cli.serve.find_spec", lambda name: None)
    line = refused(capsys, str(tmp_path))
    assert line == "error: reallm serve needs fastapi and uvicorn; pip install 'reallm-core[serve]'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model to serve; give a checkpoint's folder or a hub id: reallm serve PATH"),
        (["a", "--model", "b"], "two models: a and --model b; give one of them"),
        (["a", "--device", "gpu"], "--device gpu: must be auto, cpu or cuda"),
        (["./nowhere"], "MODEL: nowhere does not exist"),
        (["--model", "./nowhere"], "--model: nowhere does not exist"),
        (["a", "--host", "no such host"], "--host no such host: not an address"),
        (["a", "--port", "70000"], "invalid value for '--port': Input should be less than or equal to 65535"),
    ],
)
def test_mistakes(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    free = [] if "--port" in arguments else ["--port", "0"]
    assert message in refused(capsys, *arguments, *free)


def test_a_port_in_use(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refused(capsys, str(tmp_path), "--port", str(port))
    assert line == f"error: --port {port}: in use already; give another one, or 0 for any that is free"


def test_the_name_is_that_of_the_folder_or_of_a_link_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "my-model").symlink_to(tmp_path / "weights")
    monkeypatch.chdir(tmp_path / "weights")
    for path in ("..//my-model/", str(tmp_path / "my-model")):
        assert _name(path) == "my-model"
    assert _name(".") == "weights"
    assert _name("org/name") == "org/name"
