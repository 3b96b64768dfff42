"""The conformance kit: does a plugin keep the promises that `reallm` relies on?

In a plugin's own test suite, a class that says what to test is the whole suite, a pytest test for each check:

    from reallm.testing import DatasetKit, FamilyKit, LoggerKit

    class TestMyDataset(DatasetKit):
        dataset = "my-dataset"
        config = {"train_path": "tests/lines.txt", "my_arg": 2}

    class TestMyModel(FamilyKit):
        family = "my-model"

    class TestMyLogger(LoggerKit):
        logger = "my-logger"

        def read(self, run_dir):
            return {step: {name: value}, ...}  # of the files in run_dir, so that values can be compared

Without a test suite, from Python and from the command line:

    report = check_dataset("my-dataset", config={"train_path": "tests/lines.txt"})  # also check_family, check_logger
    print(report)
    assert report.passed

    reallm plugins check my-dataset dataset.train_path=tests/lines.txt
    reallm plugins check my-model --checkpoint path/to/model

A check that fails says what was expected, what was seen, where, and which line of the plugin to look at.

Its parts, for those who extend it:

- `Check` is one promise: a name, a line, and a function of a *subject* (the plugin with tiny inputs), which returns a
  short line of what it saw, or raises `CheckFailed(expected, seen, where, look_at)` or `Skipped(reason)`. Any other
  exception is the plugin's failure, reported with the innermost line of the plugin's own code. `@check(needs=[...])`
  makes one of a function; it runs only if those it needs have passed.
- `Kit` is the checks of one kind of plugin, and how their subjects are made. Its public attributes are the inputs: a
  test class sets them as class attributes, `Kit.of(**inputs)` makes one for a call. A subclass says `kind`, `checks`,
  `title()`, `subject(case)` and `from_command(...)`, and `cases()` if it has several subjects.
- `run(kit)` is the `Report`, with a `Result` for each check and case.
- `kits.KITS` says for each kind of plugin where its kit is.

Importing this module brings neither pytest nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reallm.testing.checks import Check, CheckFailed, Failure, Skipped, check
    from reallm.testing.datasets.kit import DATASET_CHECKS, DatasetKit, check_dataset
    from reallm.testing.families.kit import FAMILY_CHECKS, FamilyKit, check_family
    from reallm.testing.kit import Kit
    from reallm.testing.loggers.kit import LOGGER_CHECKS, LoggerKit, check_logger
    from reallm.testing.report import Report, Result
    from reallm.testing.running import run

_HOMES = {
    "Check": "reallm.testing.checks",
    "CheckFailed": "reallm.testing.checks",
    "DATASET_CHECKS": "reallm.testing.datasets.kit",
    "DatasetKit": "reallm.testing.datasets.kit",
    "FAMILY_CHECKS": "reallm.testing.families.kit",
    "FamilyKit": "reallm.testing.families.kit",
    "Failure": "reallm.testing.checks",
    "Kit": "reallm.testing.kit",
    "LOGGER_CHECKS": "reallm.testing.loggers.kit",
    "LoggerKit": "reallm.testing.loggers.kit",
    "Report": "reallm.testing.report",
    "Result": "reallm.testing.report",
    "Skipped": "reallm.testing.checks",
    "check": "reallm.testing.checks",
    "check_dataset": "reallm.testing.datasets.kit",
    "check_family": "reallm.testing.families.kit",
    "check_logger": "reallm.testing.loggers.kit",
    "run": "reallm.testing.running",
}

__all__ = [
    "DATASET_CHECKS",
    "FAMILY_CHECKS",
    "LOGGER_CHECKS",
    "Check",
    "CheckFailed",
    "DatasetKit",
    "Failure",
    "FamilyKit",
    "Kit",
    "LoggerKit",
    "Report",
    "Result",
    "Skipped",
    "check",
    "check_dataset",
    "check_family",
    "check_logger",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'reallm.testing' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # found once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
