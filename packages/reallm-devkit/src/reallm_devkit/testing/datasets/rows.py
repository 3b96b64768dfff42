"""Checks of what a dataset does with files that are empty, tiny, or wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from reallm.data.batching import gather, split_samples
from reallm.errors import ReallmError
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.datasets.files import OBJECTS, RowFile, Spoilt, row_file, spoilt
from reallm_devkit.testing.datasets.items import packing
from reallm_devkit.testing.datasets.subject import DatasetSubject, read
from reallm_devkit.testing.folders import scratch
from reallm_devkit.testing.source import innermost, reference_module

KNOWN = ".jsonl, .json, .txt, .csv or .tsv"


@check(needs=[packing])
def empty_file(subject: DatasetSubject) -> str:
    """a file without rows is refused with a message that names it, or makes an empty dataset"""
    file = _rows(subject)
    with scratch() as folder:
        path = folder / f"empty{file.suffix}"
        path.write_bytes(file.empty)
        refusal = _refused(subject, path, "a file without rows")
        if refusal is not None:
            return f"refused: {refusal.message}"
        count = len(subject.make(file=path))
        if count:
            raise CheckFailed("no samples", f"{count} samples", "a file without rows", subject.at("__init__"))
    return "an empty dataset"


@check(needs=[packing])
def single_row(subject: DatasetSubject) -> str:
    """a file with one row is a dataset like any other, or is refused with a message that names it"""
    file = _rows(subject)
    with scratch() as folder:
        path = folder / f"single{file.suffix}"
        path.write_bytes(file.single)
        refusal = _refused(subject, path, "a file with one row")
        if refusal is not None:
            return f"refused: {refusal.message}"
        items = read(subject.make(file=path))
    if items and split_samples(gather(items)) != items:
        look_at = subject.at("__getitem__")
        raise CheckFailed("samples that are packed unchanged", "others", "a file with one row", look_at)
    return f"{len(items)} sample{'' if len(items) == 1 else 's'}"


@check(needs=[packing])
def bad_row(subject: DatasetSubject) -> str:
    """a bad row is refused with a message that names the file and the row"""
    file = _rows(subject)
    if file.suffix not in OBJECTS:
        raise Skipped(f"the kit can spoil rows of .jsonl and .json, not of {file.suffix}")
    n_refused, kinds = 0, list(spoilt(file))
    with scratch() as folder:
        for one in kinds:
            path = folder / f"bad-row{file.suffix}"  # a name without numbers, since a number is looked for
            path.write_bytes(one.content)
            refusal = _refused(subject, path, f"row {one.numbers[-1]} {one.what}")
            if refusal is not None:
                n_refused += 1
                _check_names_row(one, path, refusal)
            elif one.must_fail:
                raise CheckFailed(
                    f"an error that names {path.name} and row {one.numbers[-1]}",
                    f"{len(subject.make(file=path))} samples and no error",
                    f"row {one.numbers[-1]} {one.what}",
                    subject.at("__init__"),
                )
    return f"{n_refused} of {len(kinds)} kinds of bad rows refused, each by its place"


def _rows(subject: DatasetSubject) -> RowFile:
    if subject.file is None:
        raise Skipped(f"give a file with rows ({KNOWN}), of which the kit can make others")
    file = row_file(subject.file)
    if file is None:
        raise Skipped(f"the kit can take apart {KNOWN}, and {subject.file.name} is none")
    return file


class _Refusal(NamedTuple):
    """The message by which a dataset refuses a file, without the file's folder, and the line it comes from."""

    message: str
    place: str


def _refused(subject: DatasetSubject, path: Path, where: str) -> _Refusal | None:
    """How the dataset refuses a file, which must name it; None if it makes samples of it."""
    look_at = subject.at("__init__")
    try:
        read(subject.make(file=path))
    except ReallmError as error:
        message = " ".join(str(error).split()).replace(f"{path.parent}/", "")
        place = innermost(error, reference_module(subject.spec.dataset)) or look_at
        if path.name not in message:
            raise CheckFailed(f"a message that names the file {path.name}", message, where, place) from error
        return _Refusal(message, place)
    except Exception as error:  # the plugin's code: it should have said what is wrong with the file
        seen = f"{type(error).__name__}: {error}".replace(str(path), path.name)
        place = innermost(error, reference_module(subject.spec.dataset)) or look_at
        raise CheckFailed("a DataError of one line that says what is wrong", seen, where, place) from error
    return None


def _check_names_row(one: Spoilt, path: Path, refusal: _Refusal) -> None:
    rest = refusal.message.replace(path.name, "")
    if not any(re.search(rf"(?<![\w.]){number}(?!\w)", rest) for number in one.numbers):
        expected = f"a message that names row {' or line '.join(map(str, sorted(set(one.numbers))))}"
        raise CheckFailed(expected, refusal.message, f"row {one.numbers[-1]} {one.what}", refusal.place)
