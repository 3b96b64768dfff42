"""The conformance kit: checks whether a plugin keeps the promises that `reallm` relies on.

In a plugin's test suite, a class that names the plugin is the whole suite, with a pytest test for each check:

    from reallm_devkit import AlgorithmKit, DatasetKit, FamilyKit, LoggerKit, RewardKit

    class TestMyDataset(DatasetKit):
        dataset = "my-dataset"
        config = {"train_path": "tests/lines.txt", "my_arg": 2}

    class TestMyModel(FamilyKit):
        family = "my-model"

    class TestMyAlgorithm(AlgorithmKit):
        algorithm = "my-algorithm"
        rows = [{"prompt": "Spell no:", "answer": " n o"}, ...]

    class TestMyLogger(LoggerKit):
        logger = "my-logger"

        def read(self, run_dir):
            return {step: {name: value}, ...}  # from the files in run_dir, so that values can be compared

    class TestMyReward(RewardKit):
        reward = "my-reward"
        rows = [{"prompt": "Spell no:", "completion": " n o", "answer": "n o"}, ...]

Without a test suite, from Python or from the command line:

    report = check_dataset("my-dataset", config={"train_path": "tests/lines.txt"})  # also check_family and others
    print(report)
    assert report.passed

    reallm plugins check my-dataset dataset.train_path=tests/lines.txt
    reallm plugins check my-model --checkpoint path/to/model

A check that fails says what was expected, what was seen, where, and which line of the plugin to look at.

To extend the kit:

- `Check` is one promise: a name, a line of text, and a function of a *subject* (the plugin with tiny inputs). The
  function returns a short line on what it saw, or raises `CheckFailed(expected, seen, where, look_at)` or
  `Skipped(reason)`. Any other exception is a failure of the plugin, reported with the innermost line of its code.
  `@check(needs=[...])` makes a check of a function; it runs only if the checks that it needs have passed.
- `Kit` has the checks of one kind of plugin and makes their subjects. Its public attributes are the inputs: a test
  class sets them as class attributes, a call passes them to `Kit.of(**inputs)`. A subclass defines `kind`, `checks`,
  `title()`, `subject(case)`, `module(subject)` and `from_command(...)`, and `cases()` if it has several subjects.
- `run(kit)` returns a `Report`, with a `Result` for each check and case.
- `reallm_devkit.testing.kits.KITS` maps each kind of plugin to its kit.

Importing this module imports neither pytest nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reallm_devkit.testing.algorithms.kit import ALGORITHM_CHECKS, AlgorithmKit, check_algorithm
    from reallm_devkit.testing.callbacks.kit import CALLBACK_CHECKS, CallbackKit, check_callback
    from reallm_devkit.testing.checks import Check, CheckFailed, Failure, Skipped, check
    from reallm_devkit.testing.datasets.kit import DATASET_CHECKS, DatasetKit, check_dataset
    from reallm_devkit.testing.families.kit import FAMILY_CHECKS, FamilyKit, check_family
    from reallm_devkit.testing.implementations.kit import (
        IMPLEMENTATION_CHECKS,
        ImplementationKit,
        check_implementation,
    )
    from reallm_devkit.testing.kit import Kit, run
    from reallm_devkit.testing.loggers.kit import LOGGER_CHECKS, LoggerKit, check_logger
    from reallm_devkit.testing.report import Report, Result
    from reallm_devkit.testing.rewards.kit import REWARD_CHECKS, RewardKit, check_reward

_MODULES = {
    "ALGORITHM_CHECKS": "reallm_devkit.testing.algorithms.kit",
    "AlgorithmKit": "reallm_devkit.testing.algorithms.kit",
    "CALLBACK_CHECKS": "reallm_devkit.testing.callbacks.kit",
    "CallbackKit": "reallm_devkit.testing.callbacks.kit",
    "Check": "reallm_devkit.testing.checks",
    "CheckFailed": "reallm_devkit.testing.checks",
    "DATASET_CHECKS": "reallm_devkit.testing.datasets.kit",
    "DatasetKit": "reallm_devkit.testing.datasets.kit",
    "FAMILY_CHECKS": "reallm_devkit.testing.families.kit",
    "FamilyKit": "reallm_devkit.testing.families.kit",
    "Failure": "reallm_devkit.testing.checks",
    "IMPLEMENTATION_CHECKS": "reallm_devkit.testing.implementations.kit",
    "ImplementationKit": "reallm_devkit.testing.implementations.kit",
    "Kit": "reallm_devkit.testing.kit",
    "LOGGER_CHECKS": "reallm_devkit.testing.loggers.kit",
    "LoggerKit": "reallm_devkit.testing.loggers.kit",
    "REWARD_CHECKS": "reallm_devkit.testing.rewards.kit",
    "Report": "reallm_devkit.testing.report",
    "Result": "reallm_devkit.testing.report",
    "RewardKit": "reallm_devkit.testing.rewards.kit",
    "Skipped": "reallm_devkit.testing.checks",
    "check": "reallm_devkit.testing.checks",
    "check_algorithm": "reallm_devkit.testing.algorithms.kit",
    "check_callback": "reallm_devkit.testing.callbacks.kit",
    "check_dataset": "reallm_devkit.testing.datasets.kit",
    "check_family": "reallm_devkit.testing.families.kit",
    "check_implementation": "reallm_devkit.testing.implementations.kit",
    "check_logger": "reallm_devkit.testing.loggers.kit",
    "check_reward": "reallm_devkit.testing.rewards.kit",
    "run": "reallm_devkit.testing.kit",
}

__all__ = [
    "ALGORITHM_CHECKS",
    "CALLBACK_CHECKS",
    "DATASET_CHECKS",
    "FAMILY_CHECKS",
    "IMPLEMENTATION_CHECKS",
    "LOGGER_CHECKS",
    "REWARD_CHECKS",
    "AlgorithmKit",
    "CallbackKit",
    "Check",
    "CheckFailed",
    "DatasetKit",
    "Failure",
    "FamilyKit",
    "ImplementationKit",
    "Kit",
    "LoggerKit",
    "Report",
    "Result",
    "RewardKit",
    "Skipped",
    "check",
    "check_algorithm",
    "check_callback",
    "check_dataset",
    "check_family",
    "check_implementation",
    "check_logger",
    "check_reward",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'reallm_devkit' has no attribute '{name}'")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value  # not looked up again
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
