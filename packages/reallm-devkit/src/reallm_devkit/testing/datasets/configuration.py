"""Checks of a dataset's configuration dataclass, and of its method `report()`."""

from __future__ import annotations

import dataclasses

from omegaconf.errors import OmegaConfBaseException

from reallm.config.schema import check_values
from reallm.config.structured import structured
from reallm.errors import ReallmError
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.datasets.items import construction
from reallm_devkit.testing.datasets.subject import DatasetSubject, required_values
from reallm_devkit.testing.source import location


@check()
def configuration(subject: DatasetSubject) -> str:
    """every key has a line of help and a type that a command line can set, and the defaults are allowed"""
    cls = type(subject.config)
    look_at = location(cls)
    for item in dataclasses.fields(cls):
        if not str(item.metadata.get("help", "")).strip():
            expected = "a line of help, as option(default, help) takes it"
            raise CheckFailed(expected, "none", f"key '{item.name}'", look_at)
    try:
        structured(cls)
    except (OmegaConfBaseException, ValueError) as error:
        seen = str(error).splitlines()[0]
        raise CheckFailed("types that a command line can set, and defaults of them", seen, look_at=look_at) from error
    try:
        check_values(cls(**required_values(subject.config)))
    except (ReallmError, ValueError) as error:
        raise CheckFailed("defaults that are allowed", str(error), look_at=look_at) from error
    return f"{len(dataclasses.fields(cls))} keys of {cls.__qualname__}"


@check(needs=[construction])
def report(subject: DatasetSubject) -> str:
    """`report()` says in one line what became of the rows"""
    method = getattr(subject.samples, "report", None)
    if not callable(method):
        raise Skipped("there is no method report(); one that says what became of the rows is printed before training")
    line = method()
    if not isinstance(line, str) or not line.strip() or len(line.splitlines()) != 1:
        raise CheckFailed("one line of text", repr(line), look_at=subject.at("report"))
    return line
