"""Metric loggers: what each writes, how a continued run continues its log, and that none ends a run."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reallm import builtin
from reallm.experiments.run import loggers as logs
from reallm.experiments.run.loggers import Loggers
from reallm.loggers.jsonl import JsonlLogger, lines_up_to
from reallm.specs import Logger, LoggerSpec

CONFIG = {"name": None, "optimizer": {"lr": 1e-3}, "loggers": ["jsonl"]}


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


def part_of_a_run(loggers: Logger | Loggers, *steps: int) -> None:
    """Trains at each step, and evaluates at each second."""
    for step in steps:
        loggers.log(step, {"train/loss": 1 / step})
        if step % 2 == 0:
            loggers.log(step, {"eval/loss": 2 / step})
    loggers.close()


# --- all loggers of a run ---


@pytest.mark.parametrize("where", ["__init__", "resume", "log", "close"])
def test_a_logger_that_raises_anywhere_is_reported_in_one_line_and_the_others_go_on(tmp_path: Path, where: str) -> None:
    failing = type("Failing", (Resumable,), {"raising": (where,)})
    started = Started(tmp_path, 4, bad=failing, good=Resumable)
    part_of_a_run(started.loggers, 5, 6)

    assert started.said == [
        f"logger 'bad' failed and is off from here on: RuntimeError: {where}: the disk is on fire",
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
    assert said == [f"logger 'it' is off: {command}"]


def test_a_folder_in_the_working_directory_is_not_taken_for_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_a_folder").mkdir()  # as `wandb/` is, in which wandb keeps its files
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    said: list[str] = []
    Loggers({"it": LoggerSpec("nowhere:Logger", requires=("only_a_folder",))}, tmp_path, CONFIG, said.append)
    assert said == ["logger 'it' is off: pip install only_a_folder"]


# --- jsonl ---


def jsonl(folder: Path, *steps: int, resume: int | None = None) -> bytes:
    logger = JsonlLogger(folder, {})
    if resume is not None:
        logger.resume(resume)
    part_of_a_run(logger, *steps)
    return (folder / "metrics.jsonl").read_bytes()


def test_a_continued_log_is_that_of_a_run_that_was_never_killed(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    expected = jsonl(whole, 1, 2, 3, 4, 5, 6)
    jsonl(killed, 1, 2, 3, 4, 5)
    with (killed / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 6, "train/lo')  # killed while it wrote
    assert jsonl(killed, 3, 4, 5, 6, resume=2) == expected
    assert [path.name for path in killed.iterdir()] == ["metrics.jsonl"]


@given(st.lists(st.integers(0, 20), max_size=30).map(sorted), st.integers(-1, 20), st.data())
def test_wherever_a_log_was_cut_off_what_stays_is_whole_and_of_steps_up_to_the_one_resumed(
    steps: list[int], step: int, data: st.DataObject
) -> None:
    lines = [json.dumps({"step": one, "text": "ünï"}, ensure_ascii=False).encode() + b"\n" for one in steps]
    content = b"".join(lines)
    cut = data.draw(st.integers(0, len(content)))
    kept = lines_up_to(step, content[:cut])
    assert content.startswith(kept)
    whole = content[:cut].count(b"\n")
    assert kept == b"".join(line for line, one in zip(lines[:whole], steps, strict=False) if one <= step)


def test_lines_that_are_not_ours_stay_byte_for_byte() -> None:
    foreign = b'# a remark\r\n\n{"step": 9}\n[9]\n{"note": 9}\n{"step": "9"}\n{"step":  2 , "a": NaN}\n\xff\xfe\n'
    assert lines_up_to(2, foreign) == foreign.replace(b'{"step": 9}\n', b"")


def test_a_log_that_needs_no_change_is_not_written_anew(tmp_path: Path) -> None:
    jsonl(tmp_path, 1, 2)
    before = (tmp_path / "metrics.jsonl").stat().st_ino
    jsonl(tmp_path, 3, resume=2)
    assert (tmp_path / "metrics.jsonl").stat().st_ino == before


# --- tensorboard ---


def test_tensorboard_shows_one_curve_of_a_continued_run(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from reallm.loggers.tensorboard import TensorBoardLogger

    part_of_a_run(TensorBoardLogger(tmp_path, CONFIG), 1, 2, 3, 4, 5)
    continued = TensorBoardLogger(tmp_path, CONFIG)
    continued.resume(2)
    part_of_a_run(continued, 3, 4, 5, 6)

    shown = events.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [point.step for point in shown.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert [point.step for point in shown.Scalars("eval/loss")] == [2, 4, 6]
    assert [point.step for point in shown.Tensors("config/text_summary")] == [0, 2]


def test_tensorboard_shows_only_the_second_try_of_a_run_that_begins_anew(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from reallm.loggers.tensorboard import TensorBoardLogger

    part_of_a_run(TensorBoardLogger(tmp_path, CONFIG), 1, 2, 3)
    again = TensorBoardLogger(tmp_path, CONFIG)
    again.resume(-1)
    part_of_a_run(again, 1, 2)

    shown = events.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [point.step for point in shown.Scalars("train/loss")] == [1, 2]


def test_a_tensorboard_logger_that_logs_nothing_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from reallm.loggers.tensorboard import TensorBoardLogger

    TensorBoardLogger(tmp_path, CONFIG).close()
    assert list(tmp_path.iterdir()) == []


# --- wandb and trackio, by stand-ins that remember their calls; tests/loggers has the real ones ---


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Puts a module in the place of an installed one: `stand_in("wandb", init=...)`."""
    names: list[str] = []

    def put(name: str, **content: Any) -> None:
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, origin="stand-in")
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.delitem(sys.modules, f"reallm.loggers.{name}", raising=False)
        names.append(name)

    for variable in ("WANDB_PROJECT", "WANDB_RUN_ID", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    yield put
    for name in names:  # imported with the stand-in in it
        sys.modules.pop(f"reallm.loggers.{name}", None)


class FakeRun:
    """What `wandb.init` and `trackio.init` return."""

    def __init__(self, run_id: str) -> None:
        self.id = run_id
        self.rows: list[Any] = []
        self.defined: dict[str, Any] = {}
        self.finished = 0

    def define_metric(self, name: str, **options: Any) -> None:
        self.defined[name] = options

    def log(self, row: dict[str, float], step: int | None = None) -> None:
        self.rows.append(row if step is None else (step, row))

    def finish(self) -> None:
        self.finished += 1


class FakeWandb:
    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.runs: list[FakeRun] = []

    def init(self, **options: Any) -> FakeRun:
        self.inits.append(options)
        self.runs.append(FakeRun(options["id"]))
        return self.runs[-1]


def built_in(name: str, folder: Path, resume_step: int | None = None, config: dict[str, Any] = CONFIG) -> Loggers:
    said: list[str] = []
    loggers = Loggers({name: builtin.reallm_loggers()[name]}, folder, config, said.append, resume_step)
    assert said == []
    return loggers


@pytest.fixture
def wandb(stand_in: Any) -> FakeWandb:
    fake = FakeWandb()
    stand_in("wandb", init=fake.init, Settings=lambda **options: SimpleNamespace(**options))
    return fake


def test_wandb_gets_the_name_the_configuration_and_the_steps(tmp_path: Path, wandb: FakeWandb) -> None:
    part_of_a_run(built_in("wandb", tmp_path), 1, 2)
    (init,), (run,) = wandb.inits, wandb.runs
    assert init["project"] == "reallm"
    assert init["name"] == tmp_path.name
    assert init["config"] == CONFIG
    assert Path(init["dir"]) == tmp_path
    assert init["resume"] is None
    assert run.defined["*"] == {"step_metric": "step"}
    assert run.rows == [
        {"train/loss": 1.0, "step": 1}, {"train/loss": 0.5, "step": 2}, {"eval/loss": 1.0, "step": 2},
    ]  # fmt: skip
    assert run.finished == 1


def test_wandb_saves_no_code_and_captures_no_output(tmp_path: Path, wandb: FakeWandb) -> None:
    built_in("wandb", tmp_path)
    assert wandb.inits[0]["save_code"] is False
    assert wandb.inits[0]["settings"].console == "off"


def test_wandb_goes_by_the_environment_and_the_name_of_the_run(
    tmp_path: Path, wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_RUN_ID", "of-a-sweep")
    built_in("wandb", tmp_path, config={"name": "first"})
    assert (wandb.inits[0]["project"], wandb.inits[0]["name"], wandb.inits[0]["id"]) == ("mine", "first", "of-a-sweep")


def test_a_continued_run_continues_the_wandb_run_of_its_folder(tmp_path: Path, wandb: FakeWandb) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    first.mkdir()
    other.mkdir()
    part_of_a_run(built_in("wandb", first), 1, 2, 3)
    part_of_a_run(built_in("wandb", other), 1)
    part_of_a_run(built_in("wandb", first, resume_step=2), 3, 4)
    ids, resumed = zip(*((init["id"], init["resume"]) for init in wandb.inits), strict=True)
    assert ids[0] == ids[2] != ids[1]
    assert resumed == (None, None, "allow")
    assert [row["step"] for row in wandb.runs[2].rows] == [3, 4, 4]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_that_cannot_be_reached_is_one_line(tmp_path: Path, stand_in: Any, name: str) -> None:
    def init(**options: Any) -> None:
        raise RuntimeError("No API key configured.\nUse `wandb login` to log in.")

    stand_in(name, init=init, Settings=SimpleNamespace)
    said: list[str] = []
    loggers = Loggers({name: builtin.reallm_loggers()[name]}, tmp_path, CONFIG, said.append)
    part_of_a_run(loggers, 1)
    assert said == [
        f"logger '{name}' failed and is off from here on: "
        "RuntimeError: No API key configured. Use `wandb login` to log in."
    ]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_that_fails_on_the_way_is_one_line(tmp_path: Path, stand_in: Any, name: str) -> None:
    class Lost(FakeRun):
        def log(self, row: dict[str, float], step: int | None = None) -> None:
            raise BrokenPipeError("the service is gone")

    run = Lost("id")
    stand_in(name, init=lambda **options: run, finish=run.finish, Settings=SimpleNamespace)
    said: list[str] = []
    loggers = Loggers({name: builtin.reallm_loggers()[name]}, tmp_path, CONFIG, said.append)
    part_of_a_run(loggers, 1, 2)
    assert said == [f"logger '{name}' failed and is off from here on: BrokenPipeError: the service is gone"]
    assert run.finished == 1


class FakeTrackio:
    """As trackio does, this finds runs by name: `resume="allow"` continues the newest of that name."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.runs: list[tuple[str, FakeRun]] = []
        self.current: FakeRun | None = None

    def init(self, **options: Any) -> FakeRun:
        self.inits.append(options)
        same_name = [run for name, run in self.runs if name == options["name"]]
        if options["resume"] == "allow" and same_name:
            self.current = same_name[-1]
        else:
            self.current = FakeRun(f"id-{len(self.runs)}")
            self.runs.append((options["name"], self.current))
        return self.current

    def finish(self) -> None:
        assert self.current is not None
        self.current.finish()


@pytest.fixture
def trackio(stand_in: Any) -> FakeTrackio:
    fake = FakeTrackio()
    stand_in("trackio", init=fake.init, finish=fake.finish)
    return fake


def test_trackio_gets_the_name_the_configuration_and_the_steps(tmp_path: Path, trackio: FakeTrackio) -> None:
    part_of_a_run(built_in("trackio", tmp_path), 1, 2)
    assert trackio.inits == [
        {"project": "reallm", "name": tmp_path.name, "config": CONFIG, "resume": "never", "embed": False}
    ]
    assert trackio.runs[0][1].rows == [(1, {"train/loss": 1.0}), (2, {"train/loss": 0.5}), (2, {"eval/loss": 1.0})]
    assert trackio.runs[0][1].finished == 1


def test_trackio_goes_by_the_environment_and_the_name_of_the_run(
    tmp_path: Path, trackio: FakeTrackio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_PROJECT", "mine")
    built_in("trackio", tmp_path, config={"name": "first"})
    assert (trackio.inits[0]["project"], trackio.inits[0]["name"]) == ("mine", "first")


def test_a_continued_run_continues_the_trackio_run_of_its_folder(tmp_path: Path, trackio: FakeTrackio) -> None:
    part_of_a_run(built_in("trackio", tmp_path), 1, 2, 3)
    part_of_a_run(built_in("trackio", tmp_path, resume_step=2), 3, 4)
    ((_, run),) = trackio.runs
    assert [step for step, _ in run.rows] == [1, 2, 2, 3, 3, 4, 4]


def test_a_newer_trackio_run_of_the_same_name_is_left_alone(tmp_path: Path, trackio: FakeTrackio) -> None:
    mine, other = tmp_path / "a" / "run", tmp_path / "b" / "run"
    mine.mkdir(parents=True)
    other.mkdir(parents=True)
    part_of_a_run(built_in("trackio", mine), 1, 2)
    part_of_a_run(built_in("trackio", other), 1)
    part_of_a_run(built_in("trackio", mine, resume_step=2), 3)
    part_of_a_run(built_in("trackio", mine, resume_step=3), 4)
    assert [[step for step, _ in run.rows] for _, run in trackio.runs] == [[1, 2, 2], [1], [3, 4, 4]]
