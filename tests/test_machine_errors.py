"""Errors that are the machine's: a lack of memory, files, threads or disk is one line, whatever raises it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from reallm.cli import main
from reallm.errors import CheckpointError, DataError, MachineError
from reallm.foreign_files import reading
from reallm.machine_errors import as_machine_error, raise_shortage

SHORTAGES = [
    (MemoryError(), "more memory is asked for", "ulimit -v"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "more memory is asked for", "ulimit -v"),
    (RuntimeError("unable to mmap 512 bytes from file <a>: Cannot allocate memory (12)"), "more memory", "ulimit -v"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "more memory", "microbatch"),
    (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "more memory", "ulimit -v"),
    (SafetensorError("Error: Cannot allocate memory (os error 12)"), "more memory", "ulimit -v"),
    (OSError(errno.EMFILE, "Too many open files", "a.py"), "too many files are open", "ulimit -n"),
    (RuntimeError("can't start new thread"), "no more threads or processes", "OMP_NUM_THREADS"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "no more threads", "ulimit -u"),
]


@pytest.mark.parametrize(("error", "problem", "remedy"), SHORTAGES)
def test_a_shortage_is_one_line_with_a_remedy_and_code_2(
    error: Exception, problem: str, remedy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(main, "app", app)
    assert main.run(["sft"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {problem}")
    assert remedy in line


@pytest.mark.parametrize("error", [error for error, *_ in SHORTAGES])
def test_a_shortage_is_not_what_a_probe_finds(error: Exception) -> None:
    raise_shortage(ValueError("a finding"))
    with pytest.raises(type(error)) as found:
        raise_shortage(error)
    assert found.value is error


@pytest.mark.parametrize("error", [error for error, *_ in SHORTAGES])
def test_a_shortage_while_a_file_is_read_is_not_the_files_fault(error: Exception) -> None:
    with pytest.raises(type(error)) as found, reading("model.safetensors", "download it again"):
        raise error
    assert found.value is error


def test_what_torch_says_about_memory_is_known() -> None:
    with pytest.raises(RuntimeError) as found:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert isinstance(as_machine_error(found.value), MachineError)


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_file_that_cannot_be_written_is_named(code: int) -> None:
    found = as_machine_error(OSError(code, os.strerror(code), "runs/a/metrics.jsonl"))
    assert isinstance(found, MachineError)
    assert str(found).startswith(f"runs/a/metrics.jsonl: {os.strerror(code)}; ")


def test_an_error_of_an_open_file_that_nobody_has_named_is_one_line_too() -> None:
    found = as_machine_error(OSError(errno.EIO, os.strerror(errno.EIO)))
    assert isinstance(found, MachineError)
    assert str(found).startswith("a file cannot be read or written: Input/output error; ")


@pytest.mark.parametrize("arguments", [["runs"], ["verify"]])
def test_a_path_that_is_too_long_is_one_short_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([*arguments, "x" * 5000]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("; give another path")
    assert len(line) < 300


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("out of memory"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
        OSError("no space left"),
        RecursionError("maximum recursion depth exceeded"),
        CheckpointError("said already"),
        DataError("out of memory"),
    ],
)
def test_bugs_and_known_errors_stay_as_they_are(error: Exception, tmp_path: Path) -> None:
    assert as_machine_error(error) is error
