"""The conformance kit: does a plugin keep the promises that `reallm` relies on?

In a plugin's own test suite, a class that says what to test is the whole suite, a pytest test for each check:

    from reallm_devkit import DatasetKit, FamilyKit, LoggerKit

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
    from reallm_devkit.testing.checks import Check, CheckFailed, Failure, Skipped, check
    from reallm_devkit.testing.datasets.kit import DATASET_CHECKS, DatasetKit, check_dataset
    from reallm_devkit.testing.families.kit import FAMILY_CHECKS, FamilyKit, check_family
    from reallm_devkit.testing.kit import Kit, run
    from reallm_devkit.testing.loggers.kit import LOGGER_CHECKS, LoggerKit, check_logger
    from reallm_devkit.testing.report import Report, Result

_HOMES = {
    "Check": "reallm_devkit.testing.checks",
    "CheckFailed": "reallm_devkit.testing.checks",
    "DATASET_CHECKS": "reallm_devkit.testing.datasets.kit",
    "DatasetKit": "reallm_devkit.testing.datasets.kit",
    "FAMILY_CHECKS": "reallm_devkit.testing.families.kit",
    "FamilyKit": "reallm_devkit.testing.families.kit",
    "Failure": "reallm_devkit.testing.checks",
    "Kit": "reallm_devkit.testing.kit",
    "LOGGER_CHECKS": "reallm_devkit.testing.loggers.kit",
    "LoggerKit": "reallm_devkit.testing.loggers.kit",
    "Report": "reallm_devkit.testing.report",
    "Result": "reallm_devkit.testing.report",
    "Skipped": "reallm_devkit.testing.checks",
    "check": "reallm_devkit.testing.checks",
    "check_dataset": "reallm_devkit.testing.datasets.kit",
    "check_family": "reallm_devkit.testing.families.kit",
    "check_logger": "reallm_devkit.testing.loggers.kit",
    "run": "reallm_devkit.testing.kit",
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
        raise AttributeError(f"module 'reallm_devkit' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value  # found once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
