"""Checks of `log`: which steps, names and values a logger accepts, and whether it records them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path

from reallm.experiments.run.loggers import is_installed
from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.loggers.subject import LoggerSubject, Records, folder_content, run_records
from reallm_devkit.testing.run_config import run_config
from reallm_devkit.testing.scratch import scratch_folder


@check()
def construction(subject: LoggerSubject) -> str:
    """it is made as `Logger(run_dir, config)`, and has `log` and `close`"""
    missing = [module for module in subject.spec.requires if not is_installed(module)]
    if missing:
        raise Skipped(f"needs {' and '.join(missing)}: {subject.spec.install_command}")
    lacking = [name for name in ("log", "close") if not callable(getattr(subject.cls, name, None))]
    if lacking:
        raise CheckFailed("methods log and close", f"no {' and no '.join(lacking)}", look_at=subject.at("__init__"))
    with scratch_folder() as folder:
        subject.run(folder / "run", [(1, {"train/loss": 2.5})])
        files = list(folder_content(folder / "run"))
    return f"{subject.cls.__qualname__}" + (f" writes {', '.join(files[:3])}" if files else "")


@check(needs=[construction])
def new_names(subject: LoggerSubject) -> str:
    """metrics come with other names from call to call, such as those of an evaluation"""
    records: Records = [
        (1, {"train/loss": 4.0}),
        (2, {"train/loss": 3.5, "train/lr": 0.5}),
        (3, {"eval/loss": 3.75, "eval/accuracy": 0.25}),
        (4, {}),
        (5, {"train/lr": 0.25}),
    ]
    return _log_and_read(subject, records)


@check(needs=[new_names])
def steps(subject: LoggerSubject) -> str:
    """it takes steps from 0 on that never decrease, with gaps, and one step several times"""
    records: Records = [
        (0, {"eval/loss": 4.5}),
        (1, {"train/loss": 4.0}),
        (1, {"eval/loss": 4.25}),
        (7, {"train/loss": 3.5}),
        (7, {"eval/loss": 3.75}),
        (1_000_000, {"train/loss": 1.5}),
    ]
    return _log_and_read(subject, records)


@check(needs=[new_names])
def names(subject: LoggerSubject) -> str:
    """it takes any name of a metric: with slashes, blanks, quotes, beyond ASCII, long, or like a path"""
    odd = (
        "loss",
        "a/b/c/d",
        "reward, mean",
        'the "best"',
        "größe/损失",
        "x" * 200,
        "../../up",
        "50 %",
        "a.b-c_d",
    )
    records: Records = [(step, {name: step + i / 4 for i, name in enumerate(odd)}) for step in (1, 2)]
    return _log_and_read(subject, records)


@check(needs=[new_names])
def values(subject: LoggerSubject) -> str:
    """it takes any number: NaN, infinities, whole, tiny and huge ones"""
    odd = (math.nan, math.inf, -math.inf, 0.0, -0.0, 3, -2, 1e-30, 3e30, 12_345_678.0)
    records: Records = [(step, {f"value/{i}": value for i, value in enumerate(odd)}) for step in (1, 2)]
    return _log_and_read(subject, records)


@check(needs=[steps])
def run_folder(subject: LoggerSubject) -> str:
    """it writes into its run folder and nowhere else"""
    with scratch_folder() as folder, _redirect_home_and_cwd(folder):
        subject.run(folder / "runs" / "run", run_records(range(4)))
        written = folder_content(folder)
    outside = [name for name in written if Path(name).parts[:2] != ("runs", "run")]
    if outside:
        positions = {"runs": "beside the run folder", "cwd": "in the working directory", "home": "in the home folder"}
        position = positions.get(Path(outside[0]).parts[0], "elsewhere")
        seen = f"'{Path(*Path(outside[0]).parts[1:])}' {position}"
        raise CheckFailed("files in the run folder alone", seen, look_at=subject.at("__init__"))
    return f"{len(written)} file{'' if len(written) == 1 else 's'}, {sum(map(len, written.values())):,} bytes"


@check(needs=[construction])
def inputs(subject: LoggerSubject) -> str:
    """it does not change the metrics and the configuration, which others get, too"""
    config, metrics = run_config(), {"train/loss": 2.5, "train/lr": 0.5}
    given = dict(metrics)
    with scratch_folder() as folder:
        logger = subject.make(folder / "run", config)
        logger.log(1, given)
        logger.close()
    if given != metrics:
        raise CheckFailed(f"metrics {metrics} after log", f"{given}", look_at=subject.at("log"))
    if config != run_config():
        raise CheckFailed(f"the configuration {run_config()}", f"{config}", look_at=subject.at("__init__"))
    return "metrics and configuration"


def _log_and_read(subject: LoggerSubject, records: Records) -> str:
    with scratch_folder() as folder:
        subject.run(folder / "run", records)
        is_read = subject.check_read(folder / "run", records, "log")
    n_values = sum(len(metrics) for _, metrics in records)
    return f"{n_values} values logged{' and read back' if is_read else ''}"


@contextmanager
def _redirect_home_and_cwd(folder: Path) -> Iterator[None]:
    """Set the working directory and the home folder to folders in `folder`, for a block."""
    (folder / "cwd").mkdir()
    (folder / "home").mkdir()
    before = os.environ.get("HOME")
    os.environ["HOME"] = str(folder / "home")
    try:
        with chdir(folder / "cwd"):
            yield
    finally:
        if before is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = before
