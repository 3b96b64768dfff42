"""Checks of a logger whose run continues: after its end, after having been killed, in another place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reallm_devkit.testing.checks import CheckFailed, Skipped, check
from reallm_devkit.testing.folders import scratch
from reallm_devkit.testing.loggers.subject import LoggerSubject, Records, content, part_of_a_run, tell
from reallm_devkit.testing.loggers.telling import steps

LAST = 6
"""Steps of an uninterrupted run."""
REACHED = 4
"""The step at which the first of two parts ends."""
SAVED, KILLED = 2, 8
"""The step that a killed run had saved, and the one it had reached. The continued one is stopped earlier."""
LOST = 3
"""Bytes at the end of a file that were not yet on disk."""

NOT_COMPARABLE = "the files of two equal runs differ; a LoggerKit with read(run_dir) would compare their values"
NO_RESUME = "there is no method resume(step); with one, what a killed run logged after its last save is forgotten"


@check(needs=[steps])
def continues(subject: LoggerSubject) -> str:
    """a run that is continued in its folder keeps what was logged before"""
    with scratch() as folder:
        run = folder / "run"
        subject.run(run, part_of_a_run(range(REACHED + 1)))
        before = content(run)
        subject.run(run, part_of_a_run(range(REACHED + 1, LAST + 1)), resume=REACHED)
        if subject.check_read(run, part_of_a_run(range(LAST + 1)), "__init__", f"continued after step {REACHED}"):
            return f"steps 0 to {LAST} of two parts"
        after = content(run)
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
    with scratch() as folder:
        run = folder / "killed"
        subject.run(run, [*part_of_a_run(range(SAVED + 1)), *_in_vain(range(SAVED + 1, KILLED + 1))])
        subject.run(run, part_of_a_run(range(SAVED + 1, LAST + 1)), resume=SAVED)
        where = f"killed after step {KILLED}, continued after {SAVED}"
        _check_like_uninterrupted(subject, folder, run, part_of_a_run(range(LAST + 1)), where)
    return f"steps {SAVED + 1} to {KILLED} forgotten"


@check(needs=[resume])
def resume_anew(subject: LoggerSubject) -> str:
    """after `resume(-1)`, of a run that had saved nothing, all that was logged before is forgotten"""
    with scratch() as folder:
        run = folder / "anew"
        subject.run(run, _in_vain(range(KILLED + 1)))
        subject.run(run, part_of_a_run(range(LAST + 1)), resume=-1)
        where = f"killed after step {KILLED}, begun anew"
        _check_like_uninterrupted(subject, folder, run, part_of_a_run(range(LAST + 1)), where)
        subject.run(folder / "empty", part_of_a_run(range(LAST + 1)), resume=-1)
    return f"steps 0 to {KILLED} forgotten; also with nothing to forget"


@check(needs=[continues])
def moved(subject: LoggerSubject) -> str:
    """the run folder can be moved when the run has ended, and the run be continued where it then is"""
    with scratch() as folder:
        old, new = folder / "old", folder / "elsewhere" / "new"
        subject.run(old, part_of_a_run(range(REACHED + 1)))
        new.parent.mkdir()
        old.rename(new)
        subject.check_read(new, part_of_a_run(range(REACHED + 1)), "__init__", "in the moved folder")
        subject.run(new, part_of_a_run(range(REACHED + 1, LAST + 1)), resume=REACHED)
        if old.exists():
            raise CheckFailed("nothing where the folder was", f"{', '.join(content(old)) or 'a folder'}",
                              "continued in the moved folder", subject.at("__init__"))  # fmt: skip
        where = "continued in the moved folder"
        is_read = subject.check_read(new, part_of_a_run(range(LAST + 1)), "__init__", where)
    return "moved and continued" + (", with the same values" if is_read else "")


@check(needs=[steps])
def killed(subject: LoggerSubject) -> str:
    """what was logged is on disk at once, so that a killed process loses nothing"""
    with scratch() as folder, subject.opened(folder / "run") as logger:
        records = part_of_a_run(range(REACHED + 1))
        tell(logger, records)
        if not subject.check_read(folder / "run", records, "log", "before close()"):
            raise Skipped("a LoggerKit with read(run_dir) would look at what is there before close()")
    return f"{len(records)} calls, before close()"


@check(needs=[resume])
def torn_file(subject: LoggerSubject) -> str:
    """a text file that ends within a line, as after a power cut, is no obstacle when the run is continued"""
    with scratch() as folder:
        subject.run(folder / "short", part_of_a_run(range(SAVED)))
        subject.run(folder / "long", part_of_a_run(range(REACHED + 1)))
        short, long = content(folder / "short"), content(folder / "long")
        grown = [name for name, data in long.items() if len(data) > len(short.get(name, b"")) and _is_text(data)]
        for number, name in enumerate(grown):
            run = folder / f"torn-{number}"
            subject.run(run, part_of_a_run(range(REACHED + 1)))
            (run / name).write_bytes(long[name][:-LOST])
            subject.run(run, part_of_a_run(range(SAVED + 1, LAST + 1)), resume=SAVED)
            where = f"the last {LOST} bytes of '{name}' were lost, continued after step {SAVED}"
            subject.check_read(run, part_of_a_run(range(LAST + 1)), "resume", where)
    if not grown:
        raise Skipped("no text file grows with the run")
    return f"{', '.join(grown)}, cut {LOST} bytes before the end"


def _in_vain(steps: Iterable[int]) -> Records:
    """What a killed run logs of steps that are then forgotten: recognizable, so that no part of it can stay unseen."""
    return [(step, {**metrics, "in-vain": 1.0}) for step, metrics in part_of_a_run(steps)]


def _check_like_uninterrupted(subject: LoggerSubject, folder: Path, run: Path, records: Records, where: str) -> None:
    """The run folder holds what that of an uninterrupted run does, by its values or else by its bytes.

    `run` is next to where the uninterrupted ones are written, in `folder`.
    """
    if subject.check_read(run, records, "resume", where):
        return
    twins = []
    for name in ("twin", "other-twin"):
        subject.run(folder / name, records)
        twins.append(content(folder / name))
    if twins[0] != twins[1]:
        raise Skipped(NOT_COMPARABLE)
    found = content(run)
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
