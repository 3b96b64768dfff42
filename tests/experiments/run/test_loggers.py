"""Metric loggers: what each writes, how a continued run continues its log, and that none ends a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from reallm import builtin
from reallm.experiments.run import loggers as logs
from reallm.experiments.run.loggers import Loggers
from reallm.specs import Logger, LoggerSpec
from tests.helpers.loggers import CONFIG, part_of_a_run


class Recorder:
    """A logger that remembers its calls, and raises in the methods that a subclass names."""

    raising: tuple[str, ...] = ()

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._called("__init__")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._called("log", step, dict(metrics))

    def close(self) -> None:
        self._called("close")

    def _called(self, name: str, *arguments: Any) -> None:
        self.calls.append((name, *arguments))
        if name in self.raising:
            raise RuntimeError(f"{name}:\n  the disk is on fire")


class Resumable(Recorder):
    def resume(self, step: int) -> None:
        self._called("resume", step)


class Started:
    """The loggers of a run, with what they said and the instances they made."""

    def __init__(self, folder: Path, resume_step: int | None = None, **classes: type[Logger]) -> None:
        self.said: list[str] = []
        self.made: dict[str, Any] = {}
        specs = {name: LoggerSpec(self._kept(name, cls)) for name, cls in classes.items()}
        self.loggers = Loggers(specs, folder, CONFIG, self.said.append, resume_step)

    def _kept(self, name: str, cls: type[Logger]) -> type[Logger]:
        made = self.made

        class Kept(cls):  # type: ignore[misc, valid-type]
            def __init__(self, *arguments: Any) -> None:
                made[name] = self
                super().__init__(*arguments)

        return Kept


@pytest.mark.parametrize("where", ["__init__", "resume", "log", "close"])
def test_a_logger_that_raises_anywhere_is_reported_in_one_line_and_the_others_go_on(tmp_path: Path, where: str) -> None:
    failing = type("Failing", (Resumable,), {"raising": (where,)})
    started = Started(tmp_path, 4, bad=failing, good=Resumable)
    part_of_a_run(started.loggers, 5, 6)

    assert started.said == [
        f"logger 'bad' failed and is switched off: RuntimeError: {where}: the disk is on fire",
    ]
    assert started.made["good"].calls == [
        ("__init__",), ("resume", 4),
        ("log", 5, {"train/loss": 1 / 5}), ("log", 6, {"train/loss": 1 / 6}), ("log", 6, {"eval/loss": 1 / 3}),
        ("close",),
    ]  # fmt: skip
    calls = [call[0] for call in started.made["bad"].calls]
    assert calls.count("log") <= (1 if where == "log" else 3)
    assert calls.count("close") == (0 if where == "__init__" else 1)


def test_a_failure_while_closing_a_failed_logger_is_not_reported_too(tmp_path: Path) -> None:
    started = Started(tmp_path, bad=type("Failing", (Recorder,), {"raising": ("log", "close")}))
    part_of_a_run(started.loggers, 1)
    assert len(started.said) == 1


def test_a_run_that_begins_resumes_no_logger(tmp_path: Path) -> None:
    started = Started(tmp_path, one=Resumable)
    part_of_a_run(started.loggers, 1)
    assert [call[0] for call in started.made["one"].calls] == ["__init__", "log", "close"]


def test_a_logger_without_resume_goes_on_when_a_run_continues(tmp_path: Path) -> None:
    started = Started(tmp_path, 0, one=Recorder)
    part_of_a_run(started.loggers, 1)
    assert [call[0] for call in started.made["one"].calls] == ["__init__", "log", "close"]
    assert started.said == []


@pytest.mark.parametrize(
    ("spec", "command"),
    [
        (builtin.reallm_loggers()["wandb"], 'pip install "reallm-core[wandb]"'),
        (builtin.reallm_loggers()["trackio"], 'pip install "reallm-core[trackio]"'),
        (builtin.reallm_loggers()["tensorboard"], 'pip install "reallm-core[tensorboard]"'),
        (LoggerSpec("nowhere:Logger", requires=("no_such_a", "no_such_b")), "pip install no_such_a no_such_b"),
        (LoggerSpec("nowhere:Logger", requires=("no_such_a",), install="such-a"), "pip install such-a"),
        (LoggerSpec("nowhere:Logger", requires=("no_such_a.inner",)), "pip install no_such_a.inner"),
    ],
)
def test_a_logger_whose_package_is_missing_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: LoggerSpec, command: str
) -> None:
    if spec in builtin.reallm_loggers().values():
        monkeypatch.setattr(logs, "find_spec", lambda module: None)
    said: list[str] = []
    Loggers({"it": spec}, tmp_path, CONFIG, said.append).close()
    assert said == [f"logger 'it' is off, since its packages are missing: {command}"]


def test_a_folder_in_the_working_directory_is_not_taken_for_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_a_folder").mkdir()  # as `wandb/` is, in which wandb keeps its files
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    said: list[str] = []
    Loggers({"it": LoggerSpec("nowhere:Logger", requires=("only_a_folder",))}, tmp_path, CONFIG, said.append)
    assert said == ["logger 'it' is off, since its packages are missing: pip install only_a_folder"]
