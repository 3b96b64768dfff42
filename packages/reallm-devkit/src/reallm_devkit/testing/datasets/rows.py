"""Checks of a dataset on files that are empty, have one row, or a bad row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from reallm.data.batching import gather, split_samples
from reallm.errors import ReallmError, one_line
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.datasets.files import JSON_SUFFIXES, BadRowFile, RowFile, bad_row_files, row_file
from reallm_devkit.testing.datasets.items import packing
from reallm_devkit.testing.datasets.subject import DatasetSubject, read_samples
from reallm_devkit.testing.scratch import scratch_folder
from reallm_devkit.testing.source import innermost_line, reference_module

SUPPORTED_SUFFIXES = ".jsonl, .json, .txt, .csv or .tsv"


@check(needs=[packing])
def empty_file(subject: DatasetSubject) -> str:
    """a file without rows is refused with a message that names it, or makes an empty dataset"""
    file = _row_file(subject)
    with scratch_folder() as folder:
        path = folder / f"empty{file.suffix}"
        path.write_bytes(file.empty)
        refusal = _refusal(subject, path, "a file without rows")
        if refusal is not None:
            return f"refused: {refusal.message}"
        count = len(subject.make(file=path))
        if count:
            raise CheckFailed("no samples", f"{count} samples", "a file without rows", subject.at("__init__"))
    return "an empty dataset"


@check(needs=[packing])
def single_row(subject: DatasetSubject) -> str:
    """a file with one row is a dataset like any other, or is refused with a message that names it"""
    file = _row_file(subject)
    with scratch_folder() as folder:
        path = folder / f"single{file.suffix}"
        path.write_bytes(file.single)
        refusal = _refusal(subject, path, "a file with one row")
        if refusal is not None:
            return f"refused: {refusal.message}"
        items = read_samples(subject.make(file=path))
    if items and split_samples(gather(items)) != items:
        look_at = subject.at("__getitem__")
        raise CheckFailed("samples that are packed unchanged", "others", "a file with one row", look_at)
    return f"{len(items)} sample{'' if len(items) == 1 else 's'}"


@check(needs=[packing])
def bad_row(subject: DatasetSubject) -> str:
    """a bad row is refused with a message that names the file and the row"""
    file = _row_file(subject)
    if file.suffix not in JSON_SUFFIXES:
        raise Skipped(f"the kit can spoil rows of .jsonl and .json, not of {file.suffix}")
    n_refused, variants = 0, list(bad_row_files(file))
    with scratch_folder() as folder:
        for bad in variants:
            path = (
                folder / f"bad-row{file.suffix}"
            )  # without a digit, since the message is searched for the row's number
            path.write_bytes(bad.content)
            refusal = _refusal(subject, path, f"row {bad.row_numbers[-1]} {bad.problem}")
            if refusal is not None:
                n_refused += 1
                _check_names_row(bad, path, refusal)
            elif bad.must_fail:
                raise CheckFailed(
                    f"an error that names {path.name} and row {bad.row_numbers[-1]}",
                    f"{len(subject.make(file=path))} samples and no error",
                    f"row {bad.row_numbers[-1]} {bad.problem}",
                    subject.at("__init__"),
                )
    return f"{n_refused} of {len(variants)} kinds of bad rows refused, each by its place"


def _row_file(subject: DatasetSubject) -> RowFile:
    if subject.file is None:
        raise Skipped(f"give a file with rows ({SUPPORTED_SUFFIXES}), of which the kit can make others")
    file = row_file(subject.file)
    if file is None:
        raise Skipped(f"the kit can take apart {SUPPORTED_SUFFIXES}, and {subject.file.name} is none")
    return file


class _Refusal(NamedTuple):
    """The error message of a dataset that refuses a file, without the file's folder, and the line that raised it."""

    message: str
    location: str


def _refusal(subject: DatasetSubject, path: Path, where: str) -> _Refusal | None:
    """The error with which the dataset refuses a file, which must name the file; None if it reads it."""
    look_at = subject.at("__init__")
    try:
        read_samples(subject.make(file=path))
    except ReallmError as error:
        message = one_line(error).replace(f"{path.parent}/", "")
        location = innermost_line(error, reference_module(subject.spec.dataset)) or look_at
        if path.name not in message:
            raise CheckFailed(f"a message that names the file {path.name}", message, where, location) from error
        return _Refusal(message, location)
    except Exception as error:  # the plugin may raise anything, but should have said what is wrong with the file
        seen = f"{type(error).__name__}: {error}".replace(str(path), path.name)
        location = innermost_line(error, reference_module(subject.spec.dataset)) or look_at
        raise CheckFailed("a DataError of one line that says what is wrong", seen, where, location) from error
    return None


def _check_names_row(bad: BadRowFile, path: Path, refusal: _Refusal) -> None:
    rest = refusal.message.replace(path.name, "")
    if not any(re.search(rf"(?<![\w.]){number}(?!\w)", rest) for number in bad.row_numbers):
        expected = f"a message that names row {' or line '.join(map(str, sorted(set(bad.row_numbers))))}"
        raise CheckFailed(expected, refusal.message, f"row {bad.row_numbers[-1]} {bad.problem}", refusal.location)
