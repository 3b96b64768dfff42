"""Checks of a logger whose run is resumed: after its end, after it was killed, or in another folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.loggers.recording import steps
from reallm_devkit.testing.loggers.subject import LoggerSubject, Records, folder_content, log_records, run_records
from reallm_devkit.testing.scratch import scratch_folder

LAST = 6
"""The last step of an uninterrupted run."""
REACHED = 4
"""The step after which the first of two parts of a run ends."""
SAVED, KILLED = 2, 8
"""The last step that a killed run saved, and the last one it logged, which is later than `LAST`."""
LOST = 3
"""How many bytes at the end of a file a power cut loses."""

NOT_COMPARABLE = "the files of two equal runs differ; a LoggerKit with read(run_dir) would compare their values"
NO_RESUME = "there is no method resume(step); with one, what a killed run logged after its last save is forgotten"


@check(needs=[steps])
def continues(subject: LoggerSubject) -> str:
    """a run that is continued in its folder keeps what was logged before"""
    with scratch_folder() as folder:
        run = folder / "run"
        subject.run(run, run_records(range(REACHED + 1)))
        before = folder_content(run)
        subject.run(run, run_records(range(REACHED + 1, LAST + 1)), resume=REACHED)
        if subject.check_read(run, run_records(range(LAST + 1)), "__init__", f"continued after step {REACHED}"):
            return f"steps 0 to {LAST} of two parts"
        after = folder_content(run)
    for name, old in before.items():
        if len(after.get(name, b"")) < len(old):
            seen = f"{len(after[name]):,} bytes" if name in after else "no such file"
            where = f"'{name}', continued after step {REACHED}"
            raise CheckFailed(f"at least the {len(old):,} bytes of before", seen, where, subject.at("__init__"))
    return f"{len(before)} file{'' if len(before) == 1 else 's'} kept"


@check(needs=[continues])
def resume(subject: LoggerSubject) -> str:
    """after `resume(step)` what was logged of later steps is forgotten, and what was logged of `step` stays"""
    if not subject.can_resume:
        raise Skipped(NO_RESUME)
    with scratch_folder() as folder:
        run = folder / "killed"
        subject.run(run, [*run_records(range(SAVED + 1)), *_discarded_records(range(SAVED + 1, KILLED + 1))])
        subject.run(run, run_records(range(SAVED + 1, LAST + 1)), resume=SAVED)
        where = f"killed after step {KILLED}, continued after {SAVED}"
        _check_like_uninterrupted(subject, folder, run, run_records(range(LAST + 1)), where)
    return f"steps {SAVED + 1} to {KILLED} forgotten"


@check(needs=[resume])
def resume_anew(subject: LoggerSubject) -> str:
    """after `resume(-1)`, of a run that had saved nothing, all that was logged before is forgotten"""
    with scratch_folder() as folder:
        run = folder / "anew"
        subject.run(run, _discarded_records(range(KILLED + 1)))
        subject.run(run, run_records(range(LAST + 1)), resume=-1)
        where = f"killed after step {KILLED}, begun anew"
        _check_like_uninterrupted(subject, folder, run, run_records(range(LAST + 1)), where)
        subject.run(folder / "empty", run_records(range(LAST + 1)), resume=-1)
    return f"steps 0 to {KILLED} forgotten; also with nothing to forget"


@check(needs=[continues])
def moved(subject: LoggerSubject) -> str:
    """the run folder can be moved after the run, and the run continued in the new folder"""
    with scratch_folder() as folder:
        old, new = folder / "old", folder / "elsewhere" / "new"
        subject.run(old, run_records(range(REACHED + 1)))
        new.parent.mkdir()
        old.rename(new)
        subject.check_read(new, run_records(range(REACHED + 1)), "__init__", "in the moved folder")
        subject.run(new, run_records(range(REACHED + 1, LAST + 1)), resume=REACHED)
        if old.exists():
            raise CheckFailed("nothing where the folder was", f"{', '.join(folder_content(old)) or 'a folder'}",
                              "continued in the moved folder", subject.at("__init__"))  # fmt: skip
        where = "continued in the moved folder"
        is_read = subject.check_read(new, run_records(range(LAST + 1)), "__init__", where)
    return "moved and continued" + (", with the same values" if is_read else "")


@check(needs=[steps])
def killed(subject: LoggerSubject) -> str:
    """what was logged is on disk at once, so that a killed process loses nothing"""
    with scratch_folder() as folder, subject.open(folder / "run") as logger:
        records = run_records(range(REACHED + 1))
        log_records(logger, records)
        if not subject.check_read(folder / "run", records, "log", "before close()"):
            raise Skipped("a LoggerKit with read(run_dir) would look at what is there before close()")
    return f"{len(records)} calls, before close()"


@check(needs=[resume])
def torn_file(subject: LoggerSubject) -> str:
    """a text file that ends within a line, as after a power cut, is no obstacle when the run is continued"""
    with scratch_folder() as folder:
        subject.run(folder / "short", run_records(range(SAVED)))
        subject.run(folder / "long", run_records(range(REACHED + 1)))
        short, long = folder_content(folder / "short"), folder_content(folder / "long")
        grown = [name for name, data in long.items() if len(data) > len(short.get(name, b"")) and _is_text(data)]
        for number, name in enumerate(grown):
            run = folder / f"torn-{number}"
            subject.run(run, run_records(range(REACHED + 1)))
            (run / name).write_bytes(long[name][:-LOST])
            subject.run(run, run_records(range(SAVED + 1, LAST + 1)), resume=SAVED)
            where = f"the last {LOST} bytes of '{name}' were lost, continued after step {SAVED}"
            subject.check_read(run, run_records(range(LAST + 1)), "resume", where)
    if not grown:
        raise Skipped("no text file grows with the run")
    return f"{', '.join(grown)}, cut {LOST} bytes before the end"


def _discarded_records(steps: Iterable[int]) -> Records:
    """Records of steps that a killed run logged after its last save, marked by a metric that no other record has."""
    return [(step, {**metrics, "discarded": 1.0}) for step, metrics in run_records(steps)]


def _check_like_uninterrupted(subject: LoggerSubject, folder: Path, run: Path, records: Records, where: str) -> None:
    """Compare a run folder with that of an uninterrupted run, by values or else by bytes.

    Args:
        subject: the logger.
        folder: in which the uninterrupted runs are written.
        run: the run folder, of a resumed run.
        records: those of an uninterrupted run.
        where: the circumstances, for a failure.

    Raises:
        CheckFailed: they differ.
        Skipped: no values can be read, and the bytes of two uninterrupted runs differ.
    """
    if subject.check_read(run, records, "resume", where):
        return
    twins = []
    for name in ("twin", "other-twin"):
        subject.run(folder / name, records)
        twins.append(folder_content(folder / name))
    if twins[0] != twins[1]:
        raise Skipped(NOT_COMPARABLE)
    found = folder_content(run)
    for name in sorted({*twins[0], *found}):
        if found.get(name) != twins[0].get(name):
            expected, seen = (
                f"{len(files[name]):,} bytes{which}" if name in files else "no such file"
                for files, which in ((twins[0], ", as in an uninterrupted run"), (found, ", which differ"))
            )
            raise CheckFailed(expected, seen, f"'{name}', {where}", subject.at("resume"))


def _is_text(data: bytes) -> bool:
    try:
        return data.decode("utf-8").isprintable() or b"\n" in data
    except UnicodeDecodeError:
        return False
