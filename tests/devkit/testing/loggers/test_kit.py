"""Each check of the kit for loggers finds what it is for, and finds no fault with what is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reallm.errors import ConfigError, UnknownNameError
from reallm.plugins import registry
from reallm.plugins.finder import Plan, Plugin
from reallm.specs import LoggerSpec
from reallm_devkit import LOGGER_CHECKS, LoggerKit, Report, check_logger
from reallm_devkit.testing.loggers import closing
from reallm_devkit.testing.loggers.subject import Curves, difference
from tests.devkit.testing.loggers import broken_loggers
from tests.devkit.testing.loggers.broken_loggers import BROKEN, ForgetsTooLittle, Good, spec


class TestGood(LoggerKit):
    logger = spec()

    def read(self, run_dir: Path) -> Curves:
        return broken_loggers.read(run_dir)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(closing, "PATIENCE_S", 0.2)
    monkeypatch.chdir(tmp_path)  # where some of them write


def by_name(found: Report) -> dict[str, tuple[str, str]]:
    return {result.check: (result.status, result.detail) for result in found.results}


@pytest.mark.parametrize(
    ("name", "logger"),
    BROKEN,
    ids=[f"{name}-{getattr(logger.logger, '__name__', '')}-{n}" for n, (name, logger) in enumerate(BROKEN)],
)
def test_what_is_broken_is_found_by_one_check_and_no_other(name: str, logger: LoggerSpec) -> None:
    found = check_logger(logger, read=broken_loggers.read)
    assert [result.check for result in found.failed] == [name], str(found)
    failure = found.failed[0].failure
    assert failure is not None
    assert failure.expected
    assert failure.seen
    assert "LoggerSpec" in failure.look_at or "broken_loggers" in failure.look_at


@pytest.fixture
def heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has the plugin that imports torch be the only one that is installed."""
    plugin = Plugin("reallm-heavy", "1.0", "tests.devkit.testing.heavy_plugin", ("logger.heavy",))
    made = registry.Registry(Plan((plugin,)))
    monkeypatch.setattr(registry, "registry", lambda: made)


@pytest.mark.usefixtures("heavy")
def test_a_plugin_that_imports_torch_to_say_what_it_offers_is_found() -> None:
    found = check_logger("heavy", read=broken_loggers.read)
    (failed,) = found.failed
    assert failed.check == "light-import"
    assert failed.detail == "it imports torch"
    assert found.title == "logger heavy of reallm-heavy 1.0"


def test_there_is_something_broken_for_each_check() -> None:
    assert {name for name, _ in BROKEN} | {"light-import"} == {check.name for check in LOGGER_CHECKS}


def test_without_read_the_files_of_equal_runs_are_compared() -> None:
    assert check_logger(spec()).passed
    (failed,) = check_logger(spec(ForgetsTooLittle)).failed
    assert failed.check == "resume"
    assert failed.failure is not None
    assert failed.failure.where == "'log.jsonl', killed after step 8, continued after 2"


class WithoutResume:
    """Simply goes on."""

    def __init__(self, run_dir: Path, config: Any) -> None:
        self.good = Good(run_dir, config)
        self.log, self.close = self.good.log, self.good.close


class LogsNothing:
    def __init__(self, run_dir: Path, config: Any) -> None:
        pass

    def log(self, step: int, metrics: Any) -> None:
        pass

    def close(self) -> None:
        pass


def test_a_logger_that_loses_everything_is_found_by_what_can_be_read() -> None:
    (failed,) = check_logger(spec(LogsNothing), read=broken_loggers.read).failed
    assert failed.check == "new-names"
    assert failed.failure is not None
    assert failed.failure.expected == "the steps 1, 2, 3, 5"
    assert failed.failure.seen == "the steps none"


def test_a_class_that_cannot_be_imported_fails_as_a_check_does() -> None:
    (failed,) = check_logger(LoggerSpec("tests.devkit.testing.nowhere:Logger", "for tests")).failed
    assert failed.check == "construction"
    assert failed.detail.startswith("raised cannot import 'tests.devkit.testing.nowhere:Logger'")
    assert failed.failure is not None
    assert failed.failure.look_at == "'tests.devkit.testing.nowhere:Logger'"


def test_what_needs_a_missing_package_says_what_to_install() -> None:
    needs = LoggerSpec(Good, "for tests", requires=("a_missing_module",), install="my-logger[all]")
    found = by_name(check_logger(needs))
    reason = 'needs a_missing_module: pip install "my-logger[all]"'
    assert {detail for status, detail in found.values() if status == "skipped"} - {reason} == {found["light-import"][1]}
    assert found["construction"] == found["torn-file"] == ("skipped", reason)


def test_a_logger_that_is_not_installed_and_a_class_that_says_nothing() -> None:
    with pytest.raises(UnknownNameError, match="no installed plugin offers the logger 'nowhere'"):
        check_logger("nowhere")
    with pytest.raises(ConfigError, match="say which logger is to be checked: logger = 'my-logger'"):
        LoggerKit().run()


@pytest.mark.parametrize(
    ("expected", "found", "different"),
    [
        ({1: {"a": 2.0}}, {1: {"a": 2.0}}, None),
        ({1: {"a": 2.0}, 2: {}}, {1: {"a": 2.0}}, None),
        ({1: {"a": 1 / 3}}, {1: {"a": 0.3333333432674408}}, None),
        ({1: {"a": float("nan")}}, {1: {"a": None}}, None),
        ({1: {"a": float("inf")}}, {1: {"a": float("inf")}}, None),
        ({1: {"a": float("inf")}}, {1: {"a": 5.0}}, ("inf", "5.0", "step 1, metric 'a'")),
        ({1: {"a": 2.0}}, {1: {"a": None}}, ("2.0", "None", "step 1, metric 'a'")),
        ({1: {"a": 2.0}}, {2: {"a": 2.0}}, ("the steps 1", "the steps 2", "")),
        ({1: {"a": 2.0}}, {1: {"a": 2.0, "b": 1.0}}, ("the metrics a", "the metrics a, b", "step 1")),
    ],
)
def test_curves_are_compared_as_far_as_formats_can_keep_them(expected: Any, found: Any, different: Any) -> None:
    assert difference(expected, found) == different


def test_the_loggers_of_the_core_that_are_always_there() -> None:
    found = check_logger("jsonl", read=read_jsonl)
    assert found.passed, str(found)
    assert {result.check for result in found.results if result.status == "skipped"} == set()


def read_jsonl(run_dir: Path) -> Curves:
    import json

    curves: dict[int, dict[str, float | None]] = {}
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        curves.setdefault(record.pop("step"), {}).update(record)
    return curves


def test_tensorboard_where_it_is_installed() -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="pip install tensorboard"
    )

    def read(run_dir: Path) -> Curves:
        events = accumulator.EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
        events.Reload()
        curves: dict[int, dict[str, float | None]] = {}
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                curves.setdefault(event.step, {})[tag] = event.value
        return curves

    buffered = {"killed": "TensorBoard's writer holds points back for up to two minutes"}
    found = check_logger("tensorboard", read=read, skip=buffered)
    assert found.passed, str(found)
    assert found.counts["skipped"] == 2, str(found)  # that, and `torn-file`: it writes no text
