"""Output that nobody reads any more: work that is worth more goes on without it, other commands end quietly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
from rich.console import Console

from reallm.cli import main
from reallm.cli.streams import outliving_readers, tell


@pytest.fixture
def closed_pipe() -> Iterator[TextIO]:
    """A pipe without a reader."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        yield stream


def test_work_goes_on_without_its_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], closed_pipe: TextIO
) -> None:
    monkeypatch.setattr(sys, "stdout", closed_pipe)
    done = []
    with outliving_readers():
        console = Console()
        for step in range(3):
            sys.stdout.write(f"{step}\n")
            sys.stdout.flush()
            console.print(step)
            done.append(step)
        sys.stdout.writelines(["unread", "\n"])
    assert done == [0, 1, 2]
    assert capsys.readouterr().err == "standard output cannot be written (Broken pipe); going on without it\n"
    assert sys.stdout is closed_pipe


def test_work_goes_on_without_anybody_to_tell(monkeypatch: pytest.MonkeyPatch, closed_pipe: TextIO) -> None:
    monkeypatch.setattr(sys, "stdout", closed_pipe)
    monkeypatch.setattr(sys, "stderr", closed_pipe)
    with outliving_readers():
        for stream in (sys.stdout, sys.stderr):
            stream.write("lost\n")
            stream.flush()
    tell("lost\n")


def test_a_training_outlives_the_reader_of_its_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], closed_pipe: TextIO
) -> None:
    steps = []

    def train(name: str, files: list[Path], arguments: list[str]) -> None:
        for step in range(2):
            Console().print(step)
            steps.append(step)

    monkeypatch.setattr("reallm.cli.algorithm._run", train)
    monkeypatch.setattr(sys, "stdout", closed_pipe)
    assert main.run(["sft"]) == 0
    assert steps == [0, 1]
    assert "going on without it" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["runs", "."]])  # text of typer's, and of rich's
def test_other_commands_end_as_by_sigpipe(tmp_path: Path, closed_pipe: TextIO, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "reallm", *arguments],
        stdout=closed_pipe,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_error_that_cannot_be_told_keeps_its_exit_code(closed_pipe: TextIO) -> None:
    done = subprocess.run([sys.executable, "-m", "reallm", "stf"], stderr=closed_pipe, check=False)
    assert done.returncode == 2


INTERRUPTED_WHILE_IMPORTED = """
import sys
class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "reallm.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupt())
"""
INTERRUPTED_IN_A_CALLBACK = """
import reallm.cli.main, time
class Noisy:
    def __del__(self):
        raise KeyboardInterrupt
def main():
    Noisy()
    time.sleep(60)
reallm.cli.main.main = main
"""


def test_a_command_that_cannot_be_imported_for_lack_of_memory_is_one_line() -> None:
    before = INTERRUPTED_WHILE_IMPORTED.replace("KeyboardInterrupt", "MemoryError")
    program = f"{before}\nfrom reallm.__main__ import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: more memory is asked for than this process can have")


@pytest.mark.parametrize("before", [INTERRUPTED_WHILE_IMPORTED, INTERRUPTED_IN_A_CALLBACK])
def test_ctrl_c_ends_the_command_wherever_it_is(before: str) -> None:
    program = f"{before}\nfrom reallm.__main__ import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\ninterrupted\n")
